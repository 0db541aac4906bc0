// Words for error messages: source places and threads.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "emulator/scheduler.h"

namespace brasa::simt::emulator {
namespace {

std::string file_name(const std::string& path) {
  return path.substr(path.find_last_of('/') + 1);
}

/// "file:line" from one line of addr2line, "/path/file:line (discriminator 3)"; empty if unknown.
std::string parse_place(std::string line) {
  line = file_name(line.substr(0, line.find_first_of(" \n")));
  return line.empty() || line[0] == '?' || line.ends_with(":?") || line.ends_with(":0") ? "" : line;
}

/// Asks addr2line; the innermost place first, then those it was inlined into.
std::string ask_addr2line(const char* module, uintptr_t offset) {
  if (std::strchr(module, '\'') != nullptr) return "";
  char command[1024];
  const int length = std::snprintf(command, sizeof command,
                                   "addr2line -i -e '%s' 0x%zx 2>/dev/null", module, offset);
  if (length < 0 || static_cast<size_t>(length) >= sizeof command) return "";
  FILE* pipe = popen(command, "r");
  if (pipe == nullptr) return "";
  std::string places;
  char line[1024];
  while (std::fgets(line, sizeof line, pipe) != nullptr) {
    const std::string place = parse_place(line);
    if (!place.empty()) places += (places.empty() ? "" : ", from ") + place;
  }
  pclose(pipe);
  return places;
}

}  // namespace

std::string locate(const void* pc) {
  const char* instruction = static_cast<const char*>(pc) - 1;
  Dl_info info;
  if (dladdr(instruction, &info) == 0 || info.dli_fname == nullptr) return "unknown code";
  const auto offset =
      static_cast<uintptr_t>(instruction - static_cast<const char*>(info.dli_fbase));
  const std::string places = ask_addr2line(info.dli_fname, offset);
  if (!places.empty()) return places;
  char text[32];
  std::snprintf(text, sizeof text, "+0x%zx", offset);
  return file_name(info.dli_fname) + text;
}

std::string describe(Location where) {
  return file_name(where.file_name()) + ":" + std::to_string(where.line());
}

std::string describe(const Thread& thread) {
  char text[128];
  std::snprintf(text, sizeof text, "block (%u,%u,%u) thread (%u,%u,%u)", thread.block_idx.x,
                thread.block_idx.y, thread.block_idx.z, thread.thread_idx.x, thread.thread_idx.y,
                thread.thread_idx.z);
  return text;
}

}  // namespace brasa::simt::emulator
