// Checks of attributes and input shapes; each throws std::invalid_argument with what was expected and what was got.
#pragma once

#include <NvInferRuntime.h>

#include "common/portable.h"
#include "common/token_layout.h"

#include <sstream>
#include <stdexcept>

namespace tocom
{

inline void require_at_least(char const* name, int32_t value, int32_t least)
{
    if (value < least)
    {
        std::ostringstream text;
        text << "attribute '" << name << "' must be at least " << least << ", got " << value;
        throw std::invalid_argument(text.str());
    }
}

inline void require_at_most(char const* name, int32_t value, int32_t most)
{
    if (value > most)
    {
        std::ostringstream text;
        text << "attribute '" << name << "' must be at most " << most << ", got " << value;
        throw std::invalid_argument(text.str());
    }
}

inline void require_rank(char const* name, nvinfer1::Dims const& dims, int32_t rank)
{
    if (dims.nbDims != rank)
    {
        std::ostringstream text;
        text << "input '" << name << "' must have " << rank << " dimensions, got " << dims.nbDims;
        throw std::invalid_argument(text.str());
    }
}

inline void require_equal(char const* name, nvinfer1::Dims const& dims, int32_t axis, int64_t expected)
{
    if (dims.d[axis] != expected)
    {
        std::ostringstream text;
        text << "dimension " << axis << " of input '" << name << "' must be " << expected << ", got " << dims.d[axis];
        throw std::invalid_argument(text.str());
    }
}

//! Check tokens [batch, tokens, channels]: the token count is static, within kMaxTokens, and allows to remove `r`.
inline void require_tokens(char const* name, nvinfer1::Dims const& dims, int32_t r, int32_t prefix)
{
    require_rank(name, dims, 3);
    std::ostringstream text;
    if (dims.d[1] < 1 || dims.d[1] > kMaxTokens || dims.d[2] < 1 || dims.d[2] > INT32_MAX)
    {
        text << "input '" << name << "' must be [batch, 1 to " << kMaxTokens << " tokens, channels], got [" << dims.d[0]
             << ", " << dims.d[1] << ", " << dims.d[2] << "] (-1: not static)";
        throw std::invalid_argument(text.str());
    }
    int32_t const most = removable(static_cast<int32_t>(dims.d[1]), prefix);
    if (r > most)
    {
        text << "attribute 'r' must be at most " << most << " for " << dims.d[1] << " tokens with " << prefix
             << " protected, got " << r;
        throw std::invalid_argument(text.str());
    }
}

} // namespace tocom
