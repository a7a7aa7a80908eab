#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <atomic>
#include <new>

#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#endif

namespace lamamba {
namespace {

constexpr int SPINS = 4000;  // some tens of microseconds: the next call of a program that does little else comes sooner
constexpr int MOST_THREADS = 512;

void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// A job has seats; a worker that takes one may read the job. `ticket` holds the job's number above its free seats, so
// a worker that comes late fails to take a seat and never sees a job that is over.
struct Pool {
  pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER;  // held by the thread whose job it is
  pthread_mutex_t sleep = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
  int workers = 0;
  std::atomic<int> sleepers{0};
  std::atomic<uint64_t> ticket{0};
  std::atomic<int64_t> next{0};
  std::atomic<int> finished{0};
  lamamba_task task = nullptr;
  void *context = nullptr;
  int64_t count = 0;

  void work() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(context, i);
  }
};

uint32_t seats(uint64_t ticket) { return uint32_t(ticket); }

void *work_for_ever(void *argument) {
  Pool &pool = *static_cast<Pool *>(argument);
  for (int spins = 0;;) {
    uint64_t ticket = pool.ticket.load();
    if (seats(ticket) > 0) {
      if (pool.ticket.compare_exchange_weak(ticket, ticket - 1)) {
        pool.work();
        pool.finished.fetch_add(1, std::memory_order_release);
      }
      spins = 0;
    } else if (++spins < SPINS) {
      pause_briefly();
    } else {
      pthread_mutex_lock(&pool.sleep);
      pool.sleepers.fetch_add(1);
      while (seats(pool.ticket.load()) == 0) pthread_cond_wait(&pool.wake, &pool.sleep);
      pool.sleepers.fetch_sub(1);
      pthread_mutex_unlock(&pool.sleep);
      spins = 0;
    }
  }
  return nullptr;
}

// Workers take no signals: the program's own threads handle those.
bool start_worker(Pool &pool) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t thread;
  const bool started = pthread_create(&thread, nullptr, work_for_ever, &pool) == 0;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (started) pthread_detach(thread);
  return started;
}

std::atomic<Pool *> shared_pool{nullptr};

// A forked child has no workers, and the parent's pool may be locked in it: it starts another one and leaves that be.
void forget_pool() { shared_pool.store(nullptr); }

Pool *pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
  (void)registered;
  Pool *found = shared_pool.load();
  if (found) return found;
  Pool *made = new (std::nothrow) Pool;
  if (made && !shared_pool.compare_exchange_strong(found, made)) {
    delete made;
    return found;
  }
  return made;
}

void run_job(Pool &pool, int helpers, int64_t count, lamamba_task task, void *context) {
  while (pool.workers < helpers && start_worker(pool)) ++pool.workers;
  if (helpers > pool.workers) helpers = pool.workers;
  pool.task = task;
  pool.context = context;
  pool.count = count;
  pool.next.store(0);
  pool.finished.store(0);
  const uint64_t number = (pool.ticket.load() >> 32) + 1;
  pool.ticket.store(number << 32 | uint32_t(helpers));
  if (pool.sleepers.load() > 0) {
    pthread_mutex_lock(&pool.sleep);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.sleep);
  }
  pool.work();
  const int took = helpers - int(seats(pool.ticket.exchange(number << 32)));
  for (int spins = 0; pool.finished.load(std::memory_order_acquire) < took;)
    ++spins < SPINS ? pause_briefly() : void(sched_yield());
}

struct Scratch {
  void *memory = nullptr;
  size_t bytes = 0;
  ~Scratch() { free(memory); }
};

}  // namespace

void run_on_own_threads(int threads, int64_t count, lamamba_task task, void *context) {
  if (threads > MOST_THREADS) threads = MOST_THREADS;
  if (threads > count) threads = int(count);
  Pool *shared = threads > 1 ? pool() : nullptr;
  if (shared && pthread_mutex_trylock(&shared->owner) == 0) {
    run_job(*shared, threads - 1, count, task, context);
    pthread_mutex_unlock(&shared->owner);
    return;
  }
  for (int64_t i = 0; i < count; ++i) task(context, i);
}

int processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online > 0 ? int(online) : 1;
}

void *scratch(size_t bytes) {
  static thread_local Scratch kept;
  if (bytes > kept.bytes) {
    free(kept.memory);
    if (posix_memalign(&kept.memory, 64, bytes) != 0) kept.memory = nullptr;
    kept.bytes = kept.memory ? bytes : 0;
  }
  return kept.memory;
}

#if defined(__x86_64__) || defined(__i386__)
FloatMode::FloatMode() : before_(_mm_getcsr()) { _mm_setcsr(0x9FC0); }  // all exceptions masked, both flushes
FloatMode::~FloatMode() { _mm_setcsr(unsigned(before_)); }
#elif defined(__aarch64__)
FloatMode::FloatMode() {
  __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
  __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t(1) << 24));
}
FloatMode::~FloatMode() { __asm__ volatile("msr fpcr, %0" : : "r"(before_)); }
#else
FloatMode::FloatMode() : before_(0) {}
FloatMode::~FloatMode() { (void)before_; }
#endif

}  // namespace lamamba
