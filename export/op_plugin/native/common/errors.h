// Errors at the library's boundary: they are logged with where and what, and become a status. Nothing throws across it.
#pragma once

#include <cstdint>
#include <exception>
#include <sstream>
#include <string>

namespace tocom
{

//! Where error lines go; nullptr stands for stderr. creators.cpp points it at TensorRT's logger.
using LogSink = void (*)(char const* line);

//! Replace the sink and return the one before.
LogSink set_log_sink(LogSink sink) noexcept;

//! Send one line to the sink. Lines are "tocom op plugin: file:line: text".
void log_error(char const* file, int32_t line, char const* text) noexcept;

//! Log what `write` writes to the stream it is given. If even that fails, say so without the text.
template <typename Write>
void log_error_from(char const* file, int32_t line, Write const& write) noexcept
{
    try
    {
        std::ostringstream text;
        write(text);
        log_error(file, line, text.str().c_str());
    }
    catch (...)
    {
        log_error(file, line, "an error occurred, and its message could not be built");
    }
}

//! What op plugin calls return: TensorRT takes 0 as success and anything else as failure.
constexpr int32_t kSuccess = 0;
constexpr int32_t kFailure = -1;

//! Run `body`, which may throw, and return its result; an exception is logged and becomes `failure`.
template <typename Result, typename Body>
Result guarded(char const* file, int32_t line, Result failure, Body const& body) noexcept
{
    try
    {
        return body();
    }
    catch (std::exception const& error)
    {
        log_error(file, line, error.what());
    }
    catch (...)
    {
        log_error(file, line, "unknown exception");
    }
    return failure;
}

} // namespace tocom

//! Log what `message` (a stream expression: "r is " << r) says and return `result` unless `condition` holds.
#define TOCOM_REQUIRE_OR(condition, message, result)                                                                   \
    do                                                                                                                 \
    {                                                                                                                  \
        if (!(condition))                                                                                              \
        {                                                                                                              \
            ::tocom::log_error_from(__FILE__, __LINE__, [&](std::ostream& tocom_stream) { tocom_stream << message; }); \
            return result;                                                                                             \
        }                                                                                                              \
    } while (false)

//! TOCOM_REQUIRE_OR for functions that return a status.
#define TOCOM_REQUIRE(condition, message) TOCOM_REQUIRE_OR(condition, message, ::tocom::kFailure)

//! Evaluate a CUDA call once; unless it succeeded, log its name and text and return a failure status.
#define TOCOM_CHECK_CUDA(call)                                                                                         \
    do                                                                                                                 \
    {                                                                                                                  \
        cudaError_t const tocom_status = (call);                                                                       \
        TOCOM_REQUIRE(tocom_status == cudaSuccess,                                                                     \
            #call << " failed: " << cudaGetErrorName(tocom_status) << " (" << cudaGetErrorString(tocom_status)         \
                  << ")");                                                                                             \
    } while (false)

//! Run a block that may throw inside a noexcept function; see guarded().
#define TOCOM_GUARDED(failure, ...) ::tocom::guarded(__FILE__, __LINE__, failure, [&] __VA_ARGS__)
