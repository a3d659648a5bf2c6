#include "common/errors.h"

#include <atomic>
#include <cstdio>
#include <cstring>

namespace tocom
{
namespace
{

std::atomic<LogSink> g_sink{nullptr};

} // namespace

LogSink set_log_sink(LogSink sink) noexcept
{
    return g_sink.exchange(sink);
}

void log_error(char const* file, int32_t line, char const* text) noexcept
{
    char const* const slash = std::strrchr(file, '/');
    // A fixed buffer: reporting that memory ran out must not need memory.
    char buffer[1024];
    std::snprintf(buffer, sizeof(buffer), "tocom op plugin: %s:%d: %s", slash != nullptr ? slash + 1 : file,
        static_cast<int>(line), text);
    LogSink const sink = g_sink.load();
    if (sink != nullptr)
    {
        sink(buffer);
        return;
    }
    std::fprintf(stderr, "%s\n", buffer);
}

} // namespace tocom
