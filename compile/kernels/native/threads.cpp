#include "threads.h"

#include <dlfcn.h>
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

struct Job {
  std::atomic<int64_t> next{0};
  lamamba_task task = nullptr;
  void *context = nullptr;
  int64_t count = 0;

  void work() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(context, i);
  }
};

// A job has seats; a worker that takes one may read the job. `ticket` holds the job's number above its free seats, so
// a worker that comes late fails to take a seat and never sees a job that is over.
struct Pool {
  pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER;  // held by the thread whose job it is
  pthread_mutex_t sleep = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
  int workers = 0;
  std::atomic<int> sleepers{0};
  std::atomic<uint64_t> ticket{0};
  std::atomic<int> finished{0};
  Job job;
};

uint32_t seats(uint64_t ticket) { return uint32_t(ticket); }

void *work_for_ever(void *argument) {
  Pool &pool = *static_cast<Pool *>(argument);
  for (int spins = 0;;) {
    uint64_t ticket = pool.ticket.load();
    if (seats(ticket) > 0) {
      if (pool.ticket.compare_exchange_weak(ticket, ticket - 1)) {
        pool.job.work();
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

std::atomic<bool> openmp_allowed{true};

// A forked child has no workers, and the parent's pool may be locked in it: it starts another one and leaves that be.
// OpenMP would wait there for threads that are gone.
void after_fork() {
  shared_pool.store(nullptr);
  openmp_allowed.store(false);
}

const int registered = pthread_atfork(nullptr, nullptr, after_fork);

Pool *pool() {
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
  pool.job.task = task;
  pool.job.context = context;
  pool.job.count = count;
  pool.job.next.store(0);
  pool.finished.store(0);
  const uint64_t number = (pool.ticket.load() >> 32) + 1;
  pool.ticket.store(number << 32 | uint32_t(helpers));
  if (pool.sleepers.load() > 0) {
    pthread_mutex_lock(&pool.sleep);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.sleep);
  }
  pool.job.work();
  const int took = helpers - int(seats(pool.ticket.exchange(number << 32)));
  for (int spins = 0; pool.finished.load(std::memory_order_acquire) < took;)
    ++spins < SPINS ? pause_briefly() : void(sched_yield());
}

// Every thread of a team enters, the calling one too. GCC's name for it; the other runtimes on Linux have it as well.
using OpenMp = void (*)(void (*enter)(void *), void *argument, unsigned threads, unsigned flags);

OpenMp openmp() {
  static std::atomic<OpenMp> found{nullptr};
  if (!openmp_allowed.load()) return nullptr;
  if (!found.load()) found.store(reinterpret_cast<OpenMp>(dlsym(RTLD_DEFAULT, "GOMP_parallel")));
  return found.load();
}

void run_on_openmp(OpenMp parallel, int threads, int64_t count, lamamba_task task, void *context) {
  Job job;
  job.task = task;
  job.context = context;
  job.count = count;
  parallel([](void *argument) { static_cast<Job *>(argument)->work(); }, &job, unsigned(threads), 0);
}

struct Scratch {
  void *memory = nullptr;
  size_t bytes = 0;
  ~Scratch() { free(memory); }
};

}  // namespace

void run_on_threads(int threads, int64_t count, lamamba_task task, void *context) {
  if (threads > MOST_THREADS) threads = MOST_THREADS;
  // As many as asked for, tasks or not: teams of changing size would start and end threads all the time.
  if (const OpenMp parallel = threads > 1 && count > 1 ? openmp() : nullptr)
    return run_on_openmp(parallel, threads, count, task, context);
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

// For tests: whether the process's OpenMP may be used from now on; returns 1 where it has one.
extern "C" __attribute__((visibility("default"))) int lamamba_allow_openmp(int allow) {
  lamamba::openmp_allowed.store(true);
  const bool there = lamamba::openmp() != nullptr;
  lamamba::openmp_allowed.store(allow != 0);
  return there;
}
