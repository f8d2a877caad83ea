// The memory of packed weights.
#pragma once

#include <cstddef>

namespace afterword {

// Up to this size memory is in large pages from the first write, which spares faults. Beyond it pages become large
// after they are written, bit by bit: virtual machines that give free memory back take seconds to get so much again.
constexpr size_t LARGE_AT_ONCE = 256 * 1024 * 1024;

// Ask for large pages. Where the system has none or refuses them, pages stay small.
void take_large_pages(void * memory, size_t bytes);

}  // namespace afterword
