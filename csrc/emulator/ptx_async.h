// Emulation of core/ptx_async.cuh.
#pragma once

namespace brasa::simt::emulator {

void async_copy(void* shared, const void* global, int bytes, int source_bytes);
void async_commit();
void async_wait(int groups_left);

}  // namespace brasa::simt::emulator
