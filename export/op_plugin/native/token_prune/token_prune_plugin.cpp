#include "token_prune/token_prune_plugin.h"

#include "common/shape_checks.h"

namespace tocom
{

template <bool kMapped>
TokenPruneOp<kMapped>::TokenPruneOp(std::vector<int32_t> attributes)
    : OpPlugin<TokenPruneOp<kMapped>>(std::move(attributes))
{
    require_at_least("r", r(), 1);
    require_at_least("prefix", prefix(), 0);
    require_at_least("fuse", fuse(), 0);
    require_at_most("fuse", fuse(), 1);
    if (kMapped)
    {
        // Without the fused token the removed ones would be nowhere.
        require_at_least("fuse", fuse(), 1);
    }
}

template <bool kMapped>
void TokenPruneOp<kMapped>::check(nvinfer1::Dims const* inputs) const
{
    nvinfer1::Dims const& x = inputs[0];
    require_tokens("x", x, r(), prefix());
    require_rank("score", inputs[1], 2);
    require_equal("score", inputs[1], 0, x.d[0]);
    require_equal("score", inputs[1], 1, x.d[1]);
}

template <bool kMapped>
int32_t TokenPruneOp<kMapped>::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t input_count,
    nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* outputs, int32_t output_count,
    nvinfer1::IExprBuilder& builder) noexcept
{
    TOCOM_REQUIRE(input_count == kInputs && output_count == kOutputs,
        kName << " takes " << kInputs << " inputs and gives " << kOutputs << " outputs");
    TOCOM_REQUIRE(inputs[0].nbDims == 3, "TokenPrune needs x of rank 3");
    outputs[0] = inputs[0];
    outputs[0].d[1] = builder.operation(nvinfer1::DimensionOperation::kSUB, *inputs[0].d[1], *builder.constant(r()));
    TOCOM_REQUIRE(outputs[0].d[1] != nullptr, "TokenPrune: the token dimension cannot be computed");
    if (kMapped)
    {
        outputs[1].nbDims = 2;
        outputs[1].d[0] = inputs[0].d[0];
        outputs[1].d[1] = inputs[0].d[1];
    }
    return kSuccess;
}

template <bool kMapped>
int32_t TokenPruneOp<kMapped>::enqueue(nvinfer1::PluginTensorDesc const* input_descs, nvinfer1::PluginTensorDesc const*,
    void const* const* inputs, void* const* outputs, void*, cudaStream_t stream) noexcept
{
    nvinfer1::Dims const& x = input_descs[0].dims;
    TokenPruneShape const shape{x.d[0], static_cast<int32_t>(x.d[1]), static_cast<int32_t>(x.d[2]), r(), prefix(),
        fuse() != 0, static_cast<TokenType>(input_descs[0].type)};
    TokenPruneTensors const tensors{inputs[0], static_cast<float const*>(inputs[1]), outputs[0],
        kMapped ? static_cast<int32_t*>(outputs[1]) : nullptr};
    TOCOM_CHECK_CUDA(token_prune(shape, tensors, stream));
    return kSuccess;
}

template class TokenPruneOp<false>;
template class TokenPruneOp<true>;

} // namespace tocom
