// Drives the op plugins through TensorRT's interface without TensorRT: loads the library, asks for its creators, and
// takes a plugin through what TensorRT does with it. Needs TensorRT's headers and a C++ compiler.

#include <NvInferRuntime.h>

#include <dlfcn.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace
{

using namespace nvinfer1;

using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
using SetLoggerFinder = void (*)(ILoggerFinder*);

std::string g_log;

class Logger : public ILogger
{
public:
    void log(Severity, char const* text) noexcept override
    {
        g_log = text;
    }
};

class Finder : public ILoggerFinder
{
public:
    ILogger* findLogger() override
    {
        return &logger_;
    }

private:
    Logger logger_;
};

IPluginCreatorV3One* find_creator(void* library, char const* name)
{
    auto* const get = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
    int32_t count = 0;
    IPluginCreatorInterface* const* const creators = get(count);
    for (int32_t i = 0; i < count; ++i)
    {
        auto* const creator = static_cast<IPluginCreatorV3One*>(creators[i]);
        if (std::strcmp(creator->getPluginName(), name) == 0)
        {
            return creator;
        }
    }
    return nullptr;
}

//! Let the creator make a plugin from int32 attributes; `wrong_type` declares the first one as float32.
IPluginV3* create(IPluginCreatorV3One& creator, int32_t const* values, int32_t count, bool wrong_type)
{
    PluginFieldCollection const& names = *creator.getFieldNames();
    std::vector<PluginField> fields;
    for (int32_t i = 0; i < count && i < names.nbFields; ++i)
    {
        bool const wrong = wrong_type && i == 0;
        fields.emplace_back(
            names.fields[i].name, values + i, wrong ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32, 1);
    }
    PluginFieldCollection const collection{static_cast<int32_t>(fields.size()), fields.data()};
    return creator.createPlugin("test", &collection, TensorRTPhase::kBUILD);
}

Dims dims_of(int64_t const* sizes, int32_t rank)
{
    Dims dims{};
    dims.nbDims = rank;
    std::copy(sizes, sizes + rank, dims.d);
    return dims;
}

} // namespace

extern "C"
{

//! The last line that the op plugin logged.
char const* tocom_plugin_log()
{
    return g_log.c_str();
}

void* tocom_plugin_open(char const* path)
{
    static Finder finder;
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr)
    {
        reinterpret_cast<SetLoggerFinder>(dlsym(library, "setLoggerFinder"))(&finder);
    }
    return library;
}

//! Write what a creator says of itself: "name;version;namespace;field,field".
int32_t tocom_plugin_describe(void* library, char const* name, char* text, int32_t capacity)
{
    IPluginCreatorV3One* const creator = find_creator(library, name);
    if (creator == nullptr)
    {
        return -1;
    }
    std::string fields;
    PluginFieldCollection const& names = *creator->getFieldNames();
    for (int32_t i = 0; i < names.nbFields; ++i)
    {
        fields += (i > 0 ? "," : "") + std::string(names.fields[i].name);
        if (names.fields[i].type != PluginFieldType::kINT32)
        {
            return -2;
        }
    }
    std::string const said = std::string(creator->getPluginName()) + ";" + creator->getPluginVersion() + ";"
        + creator->getPluginNamespace() + ";" + fields;
    std::strncpy(text, said.c_str(), capacity);
    return 0;
}

//! Create a plugin, clone it, serialize the clone's fields and create another from them; write its fields' values.
//! Returns their count, or -1 when creation was refused, or another negative number for the step that failed.
int32_t tocom_plugin_round_trip(
    void* library, char const* name, int32_t const* values, int32_t count, bool wrong_type, int32_t* out)
{
    g_log.clear();
    IPluginCreatorV3One* const creator = find_creator(library, name);
    std::unique_ptr<IPluginV3> const first(create(*creator, values, count, wrong_type));
    if (first == nullptr)
    {
        return -1;
    }
    std::unique_ptr<IPluginV3> const cloned(first->clone());
    auto* const runtime =
        static_cast<IPluginV3OneRuntime*>(cloned->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    std::unique_ptr<IPluginV3> const attached(runtime->attachToContext(nullptr));
    if (attached == nullptr)
    {
        return -2;
    }
    PluginFieldCollection const* const fields = runtime->getFieldsToSerialize();
    std::unique_ptr<IPluginV3> const restored(creator->createPlugin("test", fields, TensorRTPhase::kRUNTIME));
    if (restored == nullptr)
    {
        return -3;
    }
    auto* const again =
        static_cast<IPluginV3OneRuntime*>(restored->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    PluginFieldCollection const* const written = again->getFieldsToSerialize();
    for (int32_t i = 0; i < written->nbFields; ++i)
    {
        PluginField const& field = written->fields[i];
        if (field.type != PluginFieldType::kINT32 || field.length != 1)
        {
            return -4;
        }
        out[i] = *static_cast<int32_t const*>(field.data);
    }
    return written->nbFields;
}

//! Ask for a format combination: `types` are DataTypes, inputs first. Returns 1, 0, or -1 when creation was
//! refused.
int32_t tocom_plugin_supports(void* library, char const* name, int32_t const* values, int32_t count, int32_t position,
    int32_t const* types, int32_t inputs, int32_t outputs, bool linear)
{
    std::unique_ptr<IPluginV3> const plugin(create(*find_creator(library, name), values, count, false));
    if (plugin == nullptr)
    {
        return -1;
    }
    auto* const build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    std::vector<DynamicPluginTensorDesc> tensors(inputs + outputs);
    for (size_t i = 0; i < tensors.size(); ++i)
    {
        tensors[i].desc.type = static_cast<DataType>(types[i]);
        tensors[i].desc.format = linear ? TensorFormat::kLINEAR : TensorFormat::kCHW4;
    }
    return build->supportsFormatCombination(position, tensors.data(), inputs, outputs) ? 1 : 0;
}

//! Check input shapes as TensorRT does before it runs the plugin; returns its status. Shapes stand one after
//! another.
int32_t tocom_plugin_shapes(void* library, char const* name, int32_t const* values, int32_t count, int64_t const* sizes,
    int32_t const* ranks, int32_t inputs, int32_t outputs)
{
    g_log.clear();
    std::unique_ptr<IPluginV3> const plugin(create(*find_creator(library, name), values, count, false));
    std::vector<PluginTensorDesc> descs(inputs);
    std::vector<DynamicPluginTensorDesc> dynamic(inputs);
    for (int32_t i = 0; i < inputs; sizes += ranks[i], ++i)
    {
        descs[i].dims = dims_of(sizes, ranks[i]);
        dynamic[i].desc = descs[i];
        dynamic[i].min = dynamic[i].max = descs[i].dims;
    }
    auto* const build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    auto* const runtime =
        static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    int32_t const configured = build->configurePlugin(dynamic.data(), inputs, nullptr, outputs);
    int32_t const changed = runtime->onShapeChange(descs.data(), inputs, nullptr, outputs);
    return configured == changed ? configured : -100;
}

} // extern "C"
