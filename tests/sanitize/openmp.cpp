// The entry points of libgomp that GCC's code for csrc/ calls, on POSIX threads and barriers.
//
// ThreadSanitizer knows nothing of libgomp's own barriers and forks, which are futexes, and reports every use of data
// that they order as a race. Preloaded before libgomp, this library gives the same object code the same orders by means
// that the sanitizer sees, and no more of them: the counters that threads draw loop iterations from are relaxed.
#include <pthread.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

namespace {

constexpr int kConstructs = 1024;  // loops and singles that a parallel region may meet

struct Team {
  explicit Team(unsigned count) : size(count) { pthread_barrier_init(&barrier, nullptr, count); }
  ~Team() { pthread_barrier_destroy(&barrier); }

  const unsigned size;
  pthread_barrier_t barrier;
  std::atomic<long> taken[kConstructs] = {};  // chunks of a loop, or threads that have come to a single
};

struct Member {
  Team* team = nullptr;
  unsigned number = 0;
  int construct = -1;  // the latest loop or single that this thread came to
  unsigned long start = 0, end = 0, chunk = 0;
};

thread_local Member self;

bool next(unsigned long* first, unsigned long* last) {
  const unsigned long taken = static_cast<unsigned long>(
      self.team->taken[self.construct].fetch_add(1, std::memory_order_relaxed));
  const unsigned long begin = self.start + taken * self.chunk;
  if (begin >= self.end) return false;
  *first = begin;
  *last = self.end - begin < self.chunk ? self.end : begin + self.chunk;
  return true;
}

bool start(unsigned long begin, unsigned long end, unsigned long chunk, unsigned long* first, unsigned long* last) {
  ++self.construct;
  self.start = begin;
  self.end = end;
  self.chunk = chunk;
  return next(first, last);
}

}  // namespace

extern "C" {

int omp_get_thread_num() { return static_cast<int>(self.number); }
int omp_get_num_threads() { return self.team == nullptr ? 1 : static_cast<int>(self.team->size); }

void GOMP_barrier() { pthread_barrier_wait(&self.team->barrier); }

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  const Member outside = self;
  const std::unique_ptr<Team> team(new Team(threads));
  const auto run = [&](unsigned number) {
    self = Member{team.get(), number};
    body(data);
  };
  std::vector<std::thread> others;
  for (unsigned number = 1; number < threads; ++number) others.emplace_back(run, number);
  run(0);
  for (std::thread& other : others) other.join();
  self = outside;
}

// Loops of increment 1, which is what csrc/ has.
bool GOMP_loop_nonmonotonic_dynamic_start(long begin, long end, long, long chunk, long* first, long* last) {
  return start(static_cast<unsigned long>(begin), static_cast<unsigned long>(end), static_cast<unsigned long>(chunk),
               reinterpret_cast<unsigned long*>(first), reinterpret_cast<unsigned long*>(last));
}
bool GOMP_loop_nonmonotonic_dynamic_next(long* first, long* last) {
  return next(reinterpret_cast<unsigned long*>(first), reinterpret_cast<unsigned long*>(last));
}
bool GOMP_loop_ull_nonmonotonic_dynamic_start(bool, unsigned long long begin, unsigned long long end,
                                              unsigned long long, unsigned long long chunk,
                                              unsigned long long* first, unsigned long long* last) {
  return start(begin, end, chunk, reinterpret_cast<unsigned long*>(first), reinterpret_cast<unsigned long*>(last));
}
bool GOMP_loop_ull_nonmonotonic_dynamic_next(unsigned long long* first, unsigned long long* last) {
  return next(reinterpret_cast<unsigned long*>(first), reinterpret_cast<unsigned long*>(last));
}
void GOMP_loop_end() { GOMP_barrier(); }
void GOMP_loop_end_nowait() {}

bool GOMP_single_start() {
  ++self.construct;
  return self.team->taken[self.construct].fetch_add(1, std::memory_order_relaxed) == 0;
}

}  // extern "C"
