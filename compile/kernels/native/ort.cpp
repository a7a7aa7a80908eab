// Registering the operators with ONNX Runtime, and what programs may ask of them.
#include "ort.h"

#include "ort_operator.h"

#include <pthread.h>
#include <string.h>

#include <atomic>

using namespace lamamba;
using namespace lamamba::ort;

namespace {

constexpr int MOST_RUNTIMES = 16;  // copies of ONNX Runtime in one process that are remembered

// What was made for one ONNX Runtime. Sessions refer to it as long as they live, so it stays for good.
struct Made {
  const Api *api;
  Domain *domain;
  Operator operators[2];
};

std::atomic<int64_t> calls{0};
pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
Made made[MOST_RUNTIMES];

Status *make(const Api *api, Made *made) {
  Domain *domain;
  if (Status *status = api->CreateCustomOpDomain("lamamba.ai", &domain)) return status;
  int type = LAMAMBA_FLOAT32;
  for (Operator &op : made->operators) {
    describe(&op, api, type++);
    describe_cpu(&op);
    if (Status *status = api->CustomOpDomain_Add(domain, &op)) return status;
  }
  made->domain = domain;
  made->api = api;
  return nullptr;
}

Status *find_or_make(const Api *api, const Made **found) {
  for (Made &one : made) {
    if (!one.api)
      if (Status *status = make(api, &one)) return status;
    if (one.api == api) {
      *found = &one;
      return nullptr;
    }
  }
  return failure(*api, FAIL, "CrossScan: more than %d copies of ONNX Runtime in this process", MOST_RUNTIMES);
}

}  // namespace

void lamamba::ort::count_call() { calls.fetch_add(1, std::memory_order_relaxed); }

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT Status *RegisterCustomOps(Options *options, const ApiBase *base) {
  const Api *api = base->GetApi(API_VERSION);
  if (!api)
    return failure(*base->GetApi(1), NOT_IMPLEMENTED, "CrossScan: this is ONNX Runtime %s; expected 1.%u or later",
                   base->GetVersionString(), API_VERSION);
  const Made *found = nullptr;
  pthread_mutex_lock(&lock);
  Status *status = find_or_make(api, &found);
  pthread_mutex_unlock(&lock);
  return status ? status : api->AddCustomOpDomain(options, found->domain);
}

EXPORT int lamamba_covers(const char *provider, int type, int64_t rank, int64_t state) {
  if (!provider || rank < 1 || state < 1) return 0;
  return strcmp(provider, "CPUExecutionProvider") == 0 && (type == LAMAMBA_FLOAT32 || type == LAMAMBA_FLOAT16);
}

EXPORT int64_t lamamba_calls(void) { return calls.load(std::memory_order_relaxed); }
