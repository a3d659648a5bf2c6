// Stands for libnvinfer.so in the tests of registration: a plugin registry with TensorRT's own interface that keeps the
// creators it is given, and refuses a name that it has. Needs TensorRT's headers and a C++ compiler.

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>
#include <vector>

namespace
{

using namespace nvinfer1;

std::string g_registered;

class Registry : public IPluginRegistry
{
public:
    bool registerCreator(IPluginCreatorInterface& creator, AsciiChar const* nameSpace) noexcept override
    {
        auto const& one = static_cast<IPluginCreatorV3One&>(creator);
        std::string const text =
            std::string(nameSpace) + "::" + one.getPluginName() + " " + one.getPluginVersion() + "\n";
        if (g_registered.find(text) != std::string::npos)
        {
            return false;
        }
        g_registered += text;
        return true;
    }

    // What follows is of no interest here.
#if NV_TENSORRT_MAJOR < 11
    bool registerCreator(IPluginCreator&, AsciiChar const*) noexcept override
    {
        return false;
    }
    IPluginCreator* const* getPluginCreatorList(int32_t*) const noexcept override
    {
        return nullptr;
    }
    IPluginCreator* getPluginCreator(AsciiChar const*, AsciiChar const*, AsciiChar const*) noexcept override
    {
        return nullptr;
    }
    bool deregisterCreator(IPluginCreator const&) noexcept override
    {
        return false;
    }
#endif
    void setErrorRecorder(IErrorRecorder*) noexcept override {}
    IErrorRecorder* getErrorRecorder() const noexcept override
    {
        return nullptr;
    }
    bool isParentSearchEnabled() const override
    {
        return false;
    }
    void setParentSearchEnabled(bool) override {}
    PluginLibraryHandle loadLibrary(AsciiChar const*) noexcept override
    {
        return nullptr;
    }
    void deregisterLibrary(PluginLibraryHandle) noexcept override {}
    IPluginCreatorInterface* const* getAllCreators(int32_t*) const noexcept override
    {
        return nullptr;
    }
    IPluginCreatorInterface* getCreator(AsciiChar const*, AsciiChar const*, AsciiChar const*) noexcept override
    {
        return nullptr;
    }
    bool deregisterCreator(IPluginCreatorInterface const&) noexcept override
    {
        return false;
    }
    IPluginResource* acquirePluginResource(AsciiChar const*, IPluginResource*) noexcept override
    {
        return nullptr;
    }
    int32_t releasePluginResource(AsciiChar const*) noexcept override
    {
        return 0;
    }
    IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t*) noexcept override
    {
        return nullptr;
    }
};

} // namespace

extern "C" IPluginRegistry* getPluginRegistry() noexcept
{
    static Registry registry;
    return &registry;
}

//! What was registered, one line each: namespace::name version.
extern "C" char const* tocom_registered()
{
    return g_registered.c_str();
}
