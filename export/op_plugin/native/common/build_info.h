// What the library was built for, as text inside it, so that it can be read without loading it.
#pragma once

#include <NvInferVersion.h>
#include <cuda_runtime_api.h>

#ifndef TOCOM_ARCHITECTURES
#define TOCOM_ARCHITECTURES "unknown"
#endif

#define TOCOM_TEXT_OF(value) #value
#define TOCOM_TEXT(value) TOCOM_TEXT_OF(value)

namespace tocom
{

//! Found by its prefix in the file's bytes; `used` keeps it although nothing refers to it.
[[gnu::used]] static char const kBuildInfo[] =
    "tocom-op-plugin;version=1;tensorrt=" TOCOM_TEXT(NV_TENSORRT_MAJOR) "." TOCOM_TEXT(NV_TENSORRT_MINOR) "." TOCOM_TEXT(
        NV_TENSORRT_PATCH) ";cudart=" TOCOM_TEXT(CUDART_VERSION) ";architectures=" TOCOM_ARCHITECTURES ";";

} // namespace tocom
