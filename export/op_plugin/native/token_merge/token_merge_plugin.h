// TokenMerge as a TensorRT op plugin. The contract is in README.md beside this file.
#pragma once

#include "common/op_plugin.h"
#include "token_merge/token_merge_kernel.h"

namespace tocom
{

class TokenMergePlugin final : public OpPlugin<TokenMergePlugin>
{
public:
    static constexpr char const* kName = "TokenMerge";
    static constexpr int32_t kInputs = 3;               //!< x, keys, size
    static constexpr int32_t kOutputs = 3;              //!< y, size_out, log_size
    static constexpr uint32_t kTokenTensors = 0b101011; //!< x, keys, y and log_size; size and size_out are float32

    struct Attributes
    {
        int32_t r;
        int32_t prefix;
    };

    explicit TokenMergePlugin(Attributes attributes);

    //! Throws std::invalid_argument when an attribute is missing, of another type or out of its range.
    static Attributes parse(nvinfer1::PluginFieldCollection const& fields);
    static std::vector<char const*> field_names();

    Attributes attributes() const;
    std::vector<int32_t> field_values() const;

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
    Attributes attributes_;
};

} // namespace tocom
