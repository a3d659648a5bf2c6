// The two functions that TensorRT looks up when it loads the library. exports.map keeps everything else inside.

#include "common/build_info.h"
#include "token_merge/token_merge_plugin.h"
#include "token_prune/token_prune_plugin.h"

#include <atomic>
#include <cstdio>

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
        static nvinfer1::IPluginCreatorInterface* const creators[] = {&merge, &prune};
        count = 2;
        return static_cast<nvinfer1::IPluginCreatorInterface* const*>(creators);
    });
}
