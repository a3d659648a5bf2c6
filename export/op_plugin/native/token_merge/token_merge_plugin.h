// TokenMerge as a TensorRT op plugin. The contract is in README.md beside this file.
#pragma once

#include "common/op_plugin.h"
#include "token_merge/token_merge_kernel.h"

namespace tocom
{

//! TokenMerge; or TokenMergeMapped, which says as well where every token went.
template <bool kMapped>
class TokenMergeOp final : public OpPlugin<TokenMergeOp<kMapped>>
{
public:
    static constexpr char const* kName = kMapped ? "TokenMergeMapped" : "TokenMerge";
    static constexpr char const* kFields[] = {"r", "prefix"};
    static constexpr int32_t kInputs = 3;                //!< x, keys, size
    static constexpr int32_t kOutputs = kMapped ? 4 : 3; //!< y, size_out, log_size; destination
    static constexpr uint32_t kTokenTensors = 0b101011;  //!< x, keys, y and log_size; size and size_out are float32
    static constexpr uint32_t kIntegerTensors = kMapped ? 0b1000000 : 0; //!< destination

    //! Throws std::invalid_argument when an attribute is out of its range.
    explicit TokenMergeOp(std::vector<int32_t> attributes);

    //! Throws std::invalid_argument when the op is not defined for these input shapes.
    void check(nvinfer1::Dims const* inputs) const;

    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t input_count,
        nvinfer1::DimsExprs const* shape_inputs, int32_t shape_input_count, nvinfer1::DimsExprs* outputs,
        int32_t output_count, nvinfer1::IExprBuilder& builder) noexcept override;

    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
        nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t output_count) const noexcept override;

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
};

using TokenMergePlugin = TokenMergeOp<false>;
using TokenMergeMappedPlugin = TokenMergeOp<true>;

} // namespace tocom
