#include "token_merge/token_merge_plugin.h"

#include "common/shape_checks.h"

namespace tocom
{

template <bool kMapped>
TokenMergeOp<kMapped>::TokenMergeOp(std::vector<int32_t> attributes)
    : OpPlugin<TokenMergeOp<kMapped>>(std::move(attributes))
{
    require_at_least("r", r(), 1);
    require_at_least("prefix", prefix(), 0);
}

template <bool kMapped>
void TokenMergeOp<kMapped>::check(nvinfer1::Dims const* inputs) const
{
    nvinfer1::Dims const& x = inputs[0];
    require_tokens("x", x, r(), prefix());
    require_rank("keys", inputs[1], 4);
    require_rank("size", inputs[2], 3);
    for (int32_t axis = 0; axis < 2; ++axis)
    {
        require_equal("keys", inputs[1], axis * 2, x.d[axis]);
        require_equal("size", inputs[2], axis, x.d[axis]);
    }
    require_equal("size", inputs[2], 2, 1);
}

template <bool kMapped>
int32_t TokenMergeOp<kMapped>::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t input_count,
    nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* outputs, int32_t output_count,
    nvinfer1::IExprBuilder& builder) noexcept
{
    TOCOM_REQUIRE(input_count == kInputs && output_count == kOutputs,
        kName << " takes " << kInputs << " inputs and gives " << kOutputs << " outputs");
    TOCOM_REQUIRE(inputs[0].nbDims == 3 && inputs[2].nbDims == 3, "TokenMerge needs x and size of rank 3");
    nvinfer1::IDimensionExpr const* const left =
        builder.operation(nvinfer1::DimensionOperation::kSUB, *inputs[0].d[1], *builder.constant(r()));
    TOCOM_REQUIRE(left != nullptr, "TokenMerge: the token dimension cannot be computed");
    outputs[0] = inputs[0];
    outputs[1] = inputs[2];
    outputs[0].d[1] = outputs[1].d[1] = left;
    outputs[2].nbDims = 4;
    outputs[2].d[0] = inputs[0].d[0];
    outputs[2].d[1] = outputs[2].d[2] = builder.constant(1);
    outputs[2].d[3] = left;
    if (kMapped)
    {
        outputs[3].nbDims = 2;
        outputs[3].d[0] = inputs[0].d[0];
        outputs[3].d[1] = inputs[0].d[1];
    }
    return kSuccess;
}

template <bool kMapped>
size_t TokenMergeOp<kMapped>::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t,
    nvinfer1::DynamicPluginTensorDesc const*, int32_t) const noexcept
{
    nvinfer1::Dims const& x = inputs[0].max;
    return static_cast<size_t>(token_merge_workspace_bytes(x.d[0], static_cast<int32_t>(x.d[1]), prefix()));
}

template <bool kMapped>
int32_t TokenMergeOp<kMapped>::enqueue(nvinfer1::PluginTensorDesc const* input_descs, nvinfer1::PluginTensorDesc const*,
    void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept
{
    nvinfer1::Dims const& x = input_descs[0].dims;
    nvinfer1::Dims const& keys = input_descs[1].dims;
    TokenMergeShape const shape{x.d[0], static_cast<int32_t>(x.d[1]), static_cast<int32_t>(x.d[2]),
        static_cast<int32_t>(keys.d[1]), static_cast<int32_t>(keys.d[3]), r(), prefix(),
        static_cast<TokenType>(input_descs[0].type)};
    TokenMergeTensors const tensors{inputs[0], inputs[1], static_cast<float const*>(inputs[2]), outputs[0],
        static_cast<float*>(outputs[1]), outputs[2], workspace, kMapped ? static_cast<int32_t*>(outputs[3]) : nullptr};
    TOCOM_CHECK_CUDA(token_merge(shape, tensors, stream));
    return kSuccess;
}

template class TokenMergeOp<false>;
template class TokenMergeOp<true>;

} // namespace tocom
