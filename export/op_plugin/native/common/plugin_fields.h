// Attributes of an op: read from ONNX nodes and serialized engines, and written to engines, as int32.
#pragma once

#include <NvInferRuntime.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace tocom
{

//! Return the int32 attribute `name`.
//! Throws std::invalid_argument when it is missing, of another type, or no single value.
inline int32_t int_field(nvinfer1::PluginFieldCollection const& fields, char const* name)
{
    for (int32_t i = 0; i < fields.nbFields; ++i)
    {
        nvinfer1::PluginField const& field = fields.fields[i];
        if (field.name == nullptr || std::strcmp(field.name, name) != 0)
        {
            continue;
        }
        if (field.type != nvinfer1::PluginFieldType::kINT32 || field.length != 1 || field.data == nullptr)
        {
            throw std::invalid_argument(std::string("attribute '") + name + "' must be one int32");
        }
        return *static_cast<int32_t const*>(field.data);
    }
    throw std::invalid_argument(std::string("attribute '") + name + "' is missing");
}

//! int32 attributes that own their values, in the form TensorRT serializes.
class IntFields
{
public:
    //! `names` must outlive this object; string literals do. Without values they are what a creator says of itself.
    template <typename Names>
    explicit IntFields(Names const& names, std::vector<int32_t> values = {}) : values_(std::move(values))
    {
        for (char const* name : names)
        {
            void const* const value = values_.empty() ? nullptr : &values_[fields_.size()];
            fields_.emplace_back(name, value, nvinfer1::PluginFieldType::kINT32, 1);
        }
        collection_.nbFields = static_cast<int32_t>(fields_.size());
        collection_.fields = fields_.data();
    }

    // The collection points into this object.
    IntFields(IntFields const&) = delete;
    IntFields& operator=(IntFields const&) = delete;

    nvinfer1::PluginFieldCollection const* collection() const noexcept
    {
        return &collection_;
    }

    std::vector<int32_t> const& values() const noexcept
    {
        return values_;
    }

private:
    std::vector<int32_t> values_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
};

} // namespace tocom
