// Registering the operators with ONNX Runtime, and what programs may ask of them.
#include "ort.h"

#include "cuda_registry.h"
#include "ort_attention.h"
#include "ort_operator.h"

#include <pthread.h>
#include <string.h>

#include <atomic>
#include <initializer_list>

using namespace lamamba;
using namespace lamamba::ort;

namespace {

constexpr int MOST_DOMAINS = 16;
constexpr int TYPES[] = {LAMAMBA_FLOAT32, LAMAMBA_FLOAT16};

// What was made for one copy of ONNX Runtime. Sessions refer to it as long as they live, so it stays for good.
struct Made {
  const Api *api;
  int on_cuda;  // a bit for each of TYPES that had kernels for CUDA then
  Domain *domain;
  Operator operators[4];
  AttentionOperator attentions[8];
};

std::atomic<int64_t> calls{0};
pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
Made made[MOST_DOMAINS];
thread_local bool cpu_alone = false;  // of `lamamba_register_for`

Status *add(Made *made, Operator *op, int type, void (*describe_provider)(Operator *)) {
  describe(op, made->api, type);
  describe_provider(op);
  return made->api->CustomOpDomain_Add(made->domain, op);
}

// Not beside kernels for CUDA: ONNX Runtime would take tensors off the device rather than run the graph's function.
Status *add_attentions(Made *made) {
  AttentionOperator *op = made->attentions;
  for (bool shifted : {false, true})
    for (int type : TYPES)
      for (int bias_type : TYPES) {
        describe_attention(op, made->api, type, bias_type, shifted);
        if (Status *status = made->api->CustomOpDomain_Add(made->domain, op++)) return status;
      }
  return nullptr;
}

Status *make(const Api *api, int on_cuda, Made *into) {
  *into = {api, on_cuda, nullptr, {}, {}};
  if (Status *status = api->CreateCustomOpDomain("lamamba.ai", &into->domain)) return status;
  Operator *op = into->operators;
  for (int type : TYPES) {
    if (Status *status = add(into, op++, type, describe_cpu)) return status;
    if (on_cuda >> type & 1)
      if (Status *status = add(into, op++, type, describe_cuda)) return status;
  }
  return on_cuda ? nullptr : add_attentions(into);
}

Status *find_or_make(const Api *api, const Made **found) {
  int on_cuda = 0;
  if (!cpu_alone)
    for (int type : TYPES) on_cuda |= cuda::has_kernels(type) << type;
  for (Made &one : made) {
    if (!one.api)
      if (Status *status = make(api, on_cuda, &one)) {
        one.api = nullptr;
        return status;
      }
    if (one.api == api && one.on_cuda == on_cuda) {
      *found = &one;
      return nullptr;
    }
  }
  return failure(*api, FAIL, "lamamba.ai: registered with too many copies of ONNX Runtime in this process");
}

}  // namespace

void lamamba::ort::count_call() { calls.fetch_add(1, std::memory_order_relaxed); }

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT Status *RegisterCustomOps(Options *options, const ApiBase *base) {
  const Api *api = base->GetApi(API_VERSION);
  if (!api)
    return failure(*base->GetApi(1), NOT_IMPLEMENTED, "lamamba.ai: this is ONNX Runtime %s; expected 1.%u or later",
                   base->GetVersionString(), API_VERSION);
  const Made *found = nullptr;
  pthread_mutex_lock(&lock);
  Status *status = find_or_make(api, &found);
  pthread_mutex_unlock(&lock);
  return status ? status : api->AddCustomOpDomain(options, found->domain);
}

EXPORT int lamamba_register_for(const char *provider) {
  cpu_alone = provider && strcmp(provider, "CPUExecutionProvider") == 0;
  return provider && !cpu_alone && strcmp(provider, "CUDAExecutionProvider") != 0;
}

EXPORT int lamamba_covers(const char *provider, int type, int64_t rank, int64_t state) {
  if (!provider || rank < 1 || state < 1 || (type != LAMAMBA_FLOAT32 && type != LAMAMBA_FLOAT16)) return 0;
  if (strcmp(provider, "CUDAExecutionProvider") == 0) return cuda::covers(type, rank, state);
  return strcmp(provider, "CPUExecutionProvider") == 0;
}

EXPORT int lamamba_covers_attention(const char *provider, int type) {
  if (!provider || (type != LAMAMBA_FLOAT32 && type != LAMAMBA_FLOAT16)) return 0;
  return strcmp(provider, "CUDAExecutionProvider") == 0 || strcmp(provider, "CPUExecutionProvider") == 0;
}

EXPORT int64_t lamamba_calls(void) { return calls.load(std::memory_order_relaxed); }
