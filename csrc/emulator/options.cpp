// Options and counters, for tests.
#include <initializer_list>
#include <stdexcept>
#include <utility>

#include "emulator/memory.h"
#include "emulator/scheduler.h"

namespace brasa::simt::emulator {
namespace {

/// Sets `member` to what `word` stands for, if to anything.
template <class T>
bool choose(T& member, const std::string& word,
            std::initializer_list<std::pair<const char*, T>> choices) {
  for (const auto& [name, value] : choices) {
    if (word != name) continue;
    member = value;
    return true;
  }
  return false;
}

bool choose_number(uint32_t& member, const std::string& word) {
  constexpr size_t kDigits = 9;
  const bool digits = word.find_first_not_of("0123456789") == std::string::npos;
  if (word.empty() || word.size() > kDigits || !digits) return false;
  member = static_cast<uint32_t>(std::stoul(word));
  return true;
}

bool choose_option(Options& options, const std::string& name, const std::string& value) {
  if (name == "order") {
    return choose(options.order, value,
                  {{"forward", ThreadOrder::kForward},
                   {"reverse", ThreadOrder::kReverse},
                   {"random", ThreadOrder::kRandom}});
  }
  if (name == "async") {
    return choose(options.async, value,
                  {{"lazy", AsyncTiming::kLazy},
                   {"eager", AsyncTiming::kEager},
                   {"random", AsyncTiming::kRandom}});
  }
  if (name == "race" && (options.instrumented || value == "off")) {
    return choose(options.race, value, {{"on", true}, {"off", false}});
  }
  if (name == "lint" && (options.instrumented || value == "off")) {
    return choose(options.lint, value, {{"on", true}, {"off", false}});
  }
  if (name == "sums")
    return choose(options.sums_are_cut, value, {{"rounded", false}, {"cut", true}});
  if (name == "capability") return choose_number(options.capability, value);
  if (name == "multiprocessors" && value != "0") {
    return choose_number(options.multiprocessors, value);
  }
  return name == "seed" && choose_number(options.seed, value);
}

}  // namespace

void set_option(const std::string& name, const std::string& value) {
  const RuntimeLock lock;
  if (choose_option(Scheduler::instance().options, name, value)) return;
  throw std::invalid_argument(
      "emulator: no option '" + name + "' with the value '" + value +
      "'; there are order = forward, reverse or random; async = lazy, eager "
      "or random; race and lint = on, in a module built with RACE, or off; seed = 0 to "
      "999999999; sums = rounded or cut; capability = 80 or 90; multiprocessors = 1 or more");
}

int capability() {
  return static_cast<int>(Scheduler::instance().options.capability);
}
int multiprocessors() {
  return static_cast<int>(Scheduler::instance().options.multiprocessors);
}

Statistics statistics() {
  const RuntimeLock lock;
  Statistics result = Scheduler::instance().counts;
  size_t bytes = 0;
  result.buffers = count_buffers(&bytes);
  result.buffer_bytes = bytes;
  return result;
}

}  // namespace brasa::simt::emulator
