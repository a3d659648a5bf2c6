// What both op plugins share: identity, cloning, field serialization, tensor types and the creator.
#pragma once

#include <NvInferRuntime.h>

#include "common/errors.h"
#include "common/launch.h"
#include "common/plugin_fields.h"

#include <memory>

namespace tocom
{

constexpr char const* kNamespace = "tocom";
constexpr char const* kVersion = "1";

static_assert(static_cast<int32_t>(TokenType::kFloat32) == static_cast<int32_t>(nvinfer1::DataType::kFLOAT));
static_assert(static_cast<int32_t>(TokenType::kFloat16) == static_cast<int32_t>(nvinfer1::DataType::kHALF));
static_assert(static_cast<int32_t>(TokenType::kBFloat16) == static_cast<int32_t>(nvinfer1::DataType::kBF16));

//! Whether tokens may have this type.
inline bool is_token_type(nvinfer1::DataType type)
{
    return type == nvinfer1::DataType::kFLOAT || type == nvinfer1::DataType::kHALF || type == nvinfer1::DataType::kBF16;
}

//! Base of the op plugins.
//!
//! `Op` describes the op: `kName`, `kFields` (the names of its attributes, all int32), `kInputs`, `kOutputs`,
//! `kTokenTensors` (bit i is set when tensor i, inputs first, has the tokens' type), `kIntegerTensors` (likewise for
//! int32; the others are float32), a constructor from the attributes' values, `check(inputs)`, and what differs per op.
//! Both throw std::invalid_argument with what is wrong.
template <typename Op>
class OpPlugin : public nvinfer1::IPluginV3,
                 public nvinfer1::IPluginV3OneCore,
                 public nvinfer1::IPluginV3OneBuild,
                 public nvinfer1::IPluginV3OneRuntime
{
public:
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override
    {
        switch (type)
        {
        case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    nvinfer1::IPluginV3* clone() noexcept override
    {
        return TOCOM_GUARDED(static_cast<nvinfer1::IPluginV3*>(nullptr), { return copy(); });
    }

    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override
    {
        return clone();
    }

    char const* getPluginName() const noexcept override
    {
        return Op::kName;
    }

    char const* getPluginVersion() const noexcept override
    {
        return kVersion;
    }

    char const* getPluginNamespace() const noexcept override
    {
        return kNamespace;
    }

    int32_t getNbOutputs() const noexcept override
    {
        return Op::kOutputs;
    }

    bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors, int32_t inputs,
        int32_t outputs) noexcept override
    {
        if (inputs != Op::kInputs || outputs != Op::kOutputs || position >= inputs + outputs
            || tensors[position].desc.format != nvinfer1::TensorFormat::kLINEAR)
        {
            return false;
        }
        nvinfer1::DataType const type = tensors[position].desc.type;
        if (position == 0)
        {
            return is_token_type(type);
        }
        return type == type_of(position, tensors[0].desc.type);
    }

    int32_t getOutputDataTypes(nvinfer1::DataType* output_types, int32_t outputs, nvinfer1::DataType const* input_types,
        int32_t inputs) const noexcept override
    {
        TOCOM_REQUIRE(inputs == Op::kInputs && outputs == Op::kOutputs, wrong_counts(inputs, outputs));
        for (int32_t i = 0; i < outputs; ++i)
        {
            output_types[i] = type_of(inputs + i, input_types[0]);
        }
        return kSuccess;
    }

    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
        nvinfer1::DynamicPluginTensorDesc const*, int32_t output_count) noexcept override
    {
        TOCOM_REQUIRE(
            input_count == Op::kInputs && output_count == Op::kOutputs, wrong_counts(input_count, output_count));
        return TOCOM_GUARDED(kFailure, {
            // The batch may vary between minimum and maximum; nothing else does, so both ends tell all.
            for (auto const bound : {&nvinfer1::DynamicPluginTensorDesc::min, &nvinfer1::DynamicPluginTensorDesc::max})
            {
                nvinfer1::Dims dims[Op::kInputs];
                for (int32_t i = 0; i < Op::kInputs; ++i)
                {
                    dims[i] = inputs[i].*bound;
                }
                op().check(dims);
            }
            return kSuccess;
        });
    }

    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t input_count,
        nvinfer1::PluginTensorDesc const*, int32_t output_count) noexcept override
    {
        TOCOM_REQUIRE(
            input_count == Op::kInputs && output_count == Op::kOutputs, wrong_counts(input_count, output_count));
        return TOCOM_GUARDED(kFailure, {
            nvinfer1::Dims dims[Op::kInputs];
            for (int32_t i = 0; i < Op::kInputs; ++i)
            {
                dims[i] = inputs[i].dims;
            }
            op().check(dims);
            return kSuccess;
        });
    }

    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override
    {
        return fields_.collection();
    }

protected:
    explicit OpPlugin(std::vector<int32_t> values) : fields_(Op::kFields, std::move(values)) {}

    //! Value of the attribute `Op::kFields[index]`.
    int32_t attribute(size_t index) const
    {
        return fields_.values()[index];
    }

    static nvinfer1::DataType type_of(int32_t position, nvinfer1::DataType token_type)
    {
        if ((Op::kTokenTensors >> position) & 1)
        {
            return token_type;
        }
        return (Op::kIntegerTensors >> position) & 1 ? nvinfer1::DataType::kINT32 : nvinfer1::DataType::kFLOAT;
    }

private:
    static std::string wrong_counts(int32_t inputs, int32_t outputs)
    {
        std::ostringstream text;
        text << Op::kName << " takes " << Op::kInputs << " inputs and gives " << Op::kOutputs
             << " outputs; the network has " << inputs << " and " << outputs;
        return text.str();
    }

    Op& op()
    {
        return static_cast<Op&>(*this);
    }

    Op* copy()
    {
        return new Op(fields_.values());
    }

    IntFields fields_;
};

//! Creator of an op plugin, for networks and for engines alike.
template <typename Op>
class OpCreator : public nvinfer1::IPluginCreatorV3One
{
public:
    nvinfer1::IPluginV3* createPlugin(
        char const* name, nvinfer1::PluginFieldCollection const* fields, nvinfer1::TensorRTPhase) noexcept override
    {
        nvinfer1::IPluginV3* const nothing = nullptr;
        TOCOM_REQUIRE_OR(fields != nullptr, Op::kName << " was given no attributes", nothing);
        return TOCOM_GUARDED(nothing, {
            try
            {
                std::vector<int32_t> values;
                for (char const* const field : Op::kFields)
                {
                    values.push_back(int_field(*fields, field));
                }
                return static_cast<nvinfer1::IPluginV3*>(new Op(std::move(values)));
            }
            catch (std::invalid_argument const& error)
            {
                throw std::invalid_argument(
                    std::string(Op::kName) + " node '" + (name != nullptr ? name : "") + "': " + error.what());
            }
        });
    }

    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override
    {
        return declared_.collection();
    }

    char const* getPluginName() const noexcept override
    {
        return Op::kName;
    }

    char const* getPluginVersion() const noexcept override
    {
        return kVersion;
    }

    char const* getPluginNamespace() const noexcept override
    {
        return kNamespace;
    }

private:
    IntFields declared_{Op::kFields};
};

} // namespace tocom
