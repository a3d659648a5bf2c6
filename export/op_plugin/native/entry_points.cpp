// The two functions that TensorRT looks up when it loads the library. exports.map keeps everything else inside.

#include "common/build_info.h"
#include "token_merge/token_merge_plugin.h"
#include "token_prune/token_prune_plugin.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>

namespace
{

std::atomic<nvinfer1::ILoggerFinder*> g_logger_finder{nullptr};

void log_to_tensorrt(char const* line)
{
    nvinfer1::ILoggerFinder* const finder = g_logger_finder.load();
    nvinfer1::ILogger* const logger = finder != nullptr ? finder->findLogger() : nullptr;
    if (logger != nullptr)
    {
        logger->log(nvinfer1::ILogger::Severity::kERROR, line);
        return;
    }
    std::fprintf(stderr, "%s\n", line);
}

//! The registry of TensorRT, if this process has loaded it already; nullptr otherwise. TensorRT-RTX exports a function
//! of the same name, but its registry has another layout (calling it through these headers crashed), so only TensorRT
//! is looked for.
nvinfer1::IPluginRegistry* find_registry()
{
    void* const tensorrt = dlopen("libnvinfer.so." TOCOM_TEXT(NV_TENSORRT_MAJOR), RTLD_NOW | RTLD_NOLOAD);
    void* const function = tensorrt != nullptr ? dlsym(tensorrt, "getPluginRegistry") : nullptr;
    return function != nullptr ? reinterpret_cast<nvinfer1::IPluginRegistry* (*)()>(function)() : nullptr;
}

} // namespace

extern "C" [[gnu::visibility("default")]] void setLoggerFinder(nvinfer1::ILoggerFinder* finder)
{
    g_logger_finder.store(finder);
    tocom::set_log_sink(finder != nullptr ? log_to_tensorrt : nullptr);
}

extern "C" [[gnu::visibility("default")]] nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count)
{
    nvinfer1::IPluginCreatorInterface* const* const none = nullptr;
    count = 0;
    return TOCOM_GUARDED(none, {
        static tocom::OpCreator<tocom::TokenMergePlugin> merge;
        static tocom::OpCreator<tocom::TokenPrunePlugin> prune;
        static tocom::OpCreator<tocom::TokenMergeMappedPlugin> merge_mapped;
        static tocom::OpCreator<tocom::TokenPruneMappedPlugin> prune_mapped;
        static nvinfer1::IPluginCreatorInterface* const creators[] = {&merge, &prune, &merge_mapped, &prune_mapped};
        count = 4;
        return static_cast<nvinfer1::IPluginCreatorInterface* const*>(creators);
    });
}

//! Programs that only open the library, such as Triton, Polygraphy and trtexec --staticPlugins, never ask for its
//! creators: where this variable is set, it registers them itself. Not always, because TensorRT's loadLibrary opens it
//! in the same way, and refuses it when the creators are there already.
[[gnu::constructor]] static void register_when_asked()
{
    if (std::getenv("TOCOM_OP_PLUGIN_REGISTER") == nullptr)
    {
        return;
    }
    TOCOM_GUARDED(false, {
        nvinfer1::IPluginRegistry* const registry = find_registry();
        TOCOM_REQUIRE_OR(registry != nullptr,
            "TOCOM_OP_PLUGIN_REGISTER is set, but no TensorRT " TOCOM_TEXT(
                NV_TENSORRT_MAJOR) " is loaded yet: nothing is registered",
            false);
        int32_t count = 0;
        nvinfer1::IPluginCreatorInterface* const* const creators = getCreators(count);
        for (int32_t index = 0; index < count; ++index)
        {
            TOCOM_REQUIRE_OR(registry->registerCreator(*creators[index], tocom::kNamespace),
                "TensorRT refuses to register an op plugin; is a library with its name loaded already?", false);
        }
        return true;
    });
}
