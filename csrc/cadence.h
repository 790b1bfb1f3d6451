// When scheduler.step() is called, and whether the device has already made that step.
//
// The C++ statement of fused_sched/runtime/cadence.py, on the same words.
#pragma once

#include <cstdint>

#include "layout.h"

namespace cached {

struct Cadence {
  int64_t* words = nullptr;

  // How the next launch advances the schedules; false if the last one expected calls that have not
  // come. Without words `advance` stays as it is.
  bool guess(int64_t* advance) const {
    using namespace fused_sched;
    if (words == nullptr) return true;
    if (words[AHEAD]) return false;
    const bool expected = words[SINCE] + 1 == words[PERIOD];
    *advance = expected && words[CALLS] && words[LEFT] ? CALLED : STAY;
    return true;
  }

  void count_launch(int64_t advance) const {
    using namespace fused_sched;
    if (words == nullptr) return;
    ++words[SINCE];
    if (advance != CALLED) return;
    words[AHEAD] = 1;
    words[LEFT] -= words[LEFT] > 0;
  }

  // A call of fused scheduler `number`: whether the device has made its step already.
  bool confirm(int64_t number) const {
    using namespace fused_sched;
    if (!words[AHEAD] || words[ANSWERED] != number) return false;
    if (++words[ANSWERED] < words[CALLS]) return true;
    words[AHEAD] = words[ANSWERED] = 0;
    ++words[ROUNDS];
    if (words[SINCE]) {
      words[PERIOD] = words[SINCE];
      words[SINCE] = 0;
    }
    return true;
  }
};

}  // namespace cached
