// TokenPrune as a TensorRT op plugin. The contract is in README.md beside this file.
#pragma once

#include "common/op_plugin.h"
#include "token_prune/token_prune_kernel.h"

namespace tocom
{

//! TokenPrune; or TokenPruneMapped, which fuses, and says as well where every token went.
template <bool kMapped>
class TokenPruneOp final : public OpPlugin<TokenPruneOp<kMapped>>
{
public:
    static constexpr char const* kName = kMapped ? "TokenPruneMapped" : "TokenPrune";
    static constexpr char const* kFields[] = {"r", "prefix", "fuse"};
    static constexpr int32_t kInputs = 2;                             //!< x, score
    static constexpr int32_t kOutputs = kMapped ? 2 : 1;              //!< y; destination
    static constexpr uint32_t kTokenTensors = 0b101;                  //!< x and y; score is float32
    static constexpr uint32_t kIntegerTensors = kMapped ? 0b1000 : 0; //!< destination

    //! Throws std::invalid_argument when an attribute is out of its range.
    explicit TokenPruneOp(std::vector<int32_t> attributes);

    //! Throws std::invalid_argument when the op is not defined for these input shapes.
    void check(nvinfer1::Dims const* inputs) const;

    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t input_count,
        nvinfer1::DimsExprs const* shape_inputs, int32_t shape_input_count, nvinfer1::DimsExprs* outputs,
        int32_t output_count, nvinfer1::IExprBuilder& builder) noexcept override;

    int32_t enqueue(nvinfer1::PluginTensorDesc const* input_descs, nvinfer1::PluginTensorDesc const* output_descs,
        void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;

private:
    int32_t r() const
    {
        return this->attribute(0);
    }

    int32_t prefix() const
    {
        return this->attribute(1);
    }

    int32_t fuse() const
    {
        return this->attribute(2);
    }
};

using TokenPrunePlugin = TokenPruneOp<false>;
using TokenPruneMappedPlugin = TokenPruneOp<true>;

} // namespace tocom
