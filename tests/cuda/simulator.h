// CUDA's threads on a CPU: every thread of every block is a fiber, run in a random order that a seed decides.
//
// A Block here has the primitives of csrc/cuda/device.cuh, so the kernels' templates run unchanged. A fiber runs until
// it waits, for its warp, its block or a spin, and often stops at an atomic operation. What a device forbids is an
// error: lanes of a warp that meet different operations, a barrier that not every thread reaches.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace simulator {

constexpr int kWarp = 32;
constexpr size_t kStack = 64 << 10;
constexpr int64_t kMostTurns = 50'000'000;  // of all threads together: half a minute

enum class Wait : uint8_t { nothing, any, ballot, shuffle, shuffle_up, block, done };

struct Fiber {
  ucontext_t context;
  Wait wait = Wait::nothing;
  // A lane runs at most one exchange ahead of its warp, so two slots are enough.
  uint32_t given[2] = {0, 0};
  int exchange = 0;
};

class Machine {
 public:
  Machine(int blocks, int threads, uint64_t seed)
      : blocks_(blocks), threads_(threads), random_(seed * 2 + 1), fibers_(static_cast<size_t>(blocks * threads)) {}

  // body(block, thread) in every thread, until all have returned.
  void run(std::function<void(int, int)> body) {
    body_ = std::move(body);
    stacks_.reset(new char[fibers_.size() * kStack]);
    for (size_t f = 0; f < fibers_.size(); ++f) {
      getcontext(&fibers_[f].context);
      fibers_[f].context.uc_stack.ss_sp = stacks_.get() + f * kStack;
      fibers_[f].context.uc_stack.ss_size = kStack;
      fibers_[f].context.uc_link = &scheduler_;
      makecontext(&fibers_[f].context, reinterpret_cast<void (*)()>(&Machine::enter), 3, halves(this, 0),
                  halves(this, 1), static_cast<int>(f));
      ready_.push_back(static_cast<int>(f));
    }
    size_t done = 0;
    for (int64_t turns = 0; done < fibers_.size(); ++turns) {
      if (turns == kMostTurns) throw std::runtime_error("livelock: threads run, and do not end");
      if (ready_.empty()) throw std::runtime_error("deadlock: a barrier that not every thread reaches");
      std::swap(ready_[next() % ready_.size()], ready_.back());
      running_ = ready_.back();
      swapcontext(&scheduler_, &fibers_[static_cast<size_t>(running_)].context);
      const Wait wait = fiber(running_).wait;
      if (wait == Wait::nothing) continue;  // still ready
      ready_.pop_back();
      if (wait == Wait::done) {
        ++done;
      } else {
        release(wait, running_);
      }
    }
  }

  int threads() const { return threads_; }
  int blocks() const { return blocks_; }

  void wait(int f, Wait what) {
    fiber(f).wait = what;
    swapcontext(&fiber(f).context, &scheduler_);
  }

  void maybe_yield(int f) {
    if (next() % 8 == 0) wait(f, Wait::nothing);
  }

  // Gives a value to the warp and returns the slot in which the warp's other values are.
  int exchange(int f, Wait what, uint32_t value) {
    const int slot = fiber(f).exchange++ % 2;
    fiber(f).given[slot] = value;
    wait(f, what);
    return slot;
  }

  uint32_t given(int f, int lane, int slot) { return fiber(f / kWarp * kWarp + lane).given[slot]; }

 private:
  Fiber& fiber(int f) { return fibers_[static_cast<size_t>(f)]; }

  // Wakes the warp or the block of a fiber once all of it waits.
  void release(Wait what, int f) {
    const int size = what == Wait::block ? threads_ : kWarp;
    const int first = f / size * size;
    for (int i = first; i < first + size; ++i) {
      const Wait other = fiber(i).wait;
      if (other == what) continue;
      if (what == Wait::block || other == Wait::nothing) return;
      throw std::runtime_error("lanes of a warp meet different operations");
    }
    for (int i = first; i < first + size; ++i) {
      fiber(i).wait = Wait::nothing;
      ready_.push_back(i);
    }
  }

  uint64_t next() {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return random_ >> 11;
  }

  // makecontext passes ints only.
  static int halves(Machine* machine, int half) {
    return static_cast<int>(reinterpret_cast<uintptr_t>(machine) >> (32 * half) & 0xffffffffu);
  }
  static void enter(int low, int high, int f) {
    Machine* const machine = reinterpret_cast<Machine*>(static_cast<uintptr_t>(static_cast<uint32_t>(high)) << 32 |
                                                        static_cast<uint32_t>(low));
    machine->body_(f / machine->threads_, f % machine->threads_);
    machine->fiber(f).wait = Wait::done;
  }

  int blocks_, threads_;
  uint64_t random_;
  std::vector<Fiber> fibers_;
  std::unique_ptr<char[]> stacks_;
  std::vector<int> ready_;
  std::function<void(int, int)> body_;
  ucontext_t scheduler_;
  int running_ = 0;
};

class Block {
 public:
  Block(Machine& machine, int index, int thread)
      : machine_(machine), index_(index), thread_(thread), fiber_(index * machine.threads() + thread) {}

  int thread() const { return thread_; }
  int threads() const { return machine_.threads(); }
  uint32_t index() const { return static_cast<uint32_t>(index_); }
  uint32_t blocks() const { return static_cast<uint32_t>(machine_.blocks()); }

  void sync() { machine_.wait(fiber_, Wait::block); }
  void fence() {}
  void pause() { machine_.wait(fiber_, Wait::nothing); }

  bool any(bool condition) {
    const int slot = machine_.exchange(fiber_, Wait::any, condition);
    bool any = false;
    for (int lane = 0; lane < kWarp; ++lane) any |= machine_.given(fiber_, lane, slot) != 0;
    return any;
  }
  uint32_t ballot(bool condition) {
    const int slot = machine_.exchange(fiber_, Wait::ballot, condition);
    uint32_t word = 0;
    for (int lane = 0; lane < kWarp; ++lane) word |= machine_.given(fiber_, lane, slot) << lane;
    return word;
  }
  uint32_t shuffle(uint32_t value, int lane) {
    const int slot = machine_.exchange(fiber_, Wait::shuffle, value);
    return machine_.given(fiber_, lane, slot);
  }
  uint32_t shuffle_up(uint32_t value, int lanes) {
    const int slot = machine_.exchange(fiber_, Wait::shuffle_up, value);
    const int from = thread_ % kWarp - lanes;
    return machine_.given(fiber_, from < 0 ? thread_ % kWarp : from, slot);
  }

  static uint32_t popcount(uint32_t word) { return static_cast<uint32_t>(__builtin_popcount(word)); }
  static uint32_t lowest_bit(uint32_t word) { return static_cast<uint32_t>(__builtin_ctz(word)); }

  template <class T>
  T load(const T* address) {
    return *address;
  }
  uint32_t add(uint32_t* address, uint32_t value) {
    machine_.maybe_yield(fiber_);
    const uint32_t before = *address;
    *address += value;
    return before;
  }
  uint32_t add_shared(uint32_t* address, uint32_t value) { return add(address, value); }

 private:
  Machine& machine_;
  int index_, thread_, fiber_;
};

}  // namespace simulator
