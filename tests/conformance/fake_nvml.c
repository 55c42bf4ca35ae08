/* A stand-in for NVIDIA's libnvidia-ml.so.1: what the meter asks of it, with the symbols, types and error codes of
 * nvml.h (CUDA 12). Its counters advance with real time, in steps.
 *
 * Settings are lines "key=value" of the file that FAKE_NVML names, read anew at every call, so that a test can change
 * them while the library is in use:
 *
 *   gpus=2            how many GPUs there are
 *   period_ms=20      how often the energy counters move
 *   N.energy=0        GPU N counts no energy
 *   N.power=0         GPU N reports no power
 *   N.resets=1        GPU N's driver was reset so often; its counter begins at zero each time
 *   N.lost=1          GPU N has fallen off the bus; when it is back, handles from before are of no use any more
 *   N.mig=1           MIG divides GPU N; without the line GPU N doesn't know MIG
 *   N.pids=7 8        processes that compute on GPU N
 *   N.mps=9           clients of MPS on GPU N
 *   name.7=python3    what process 7 is called
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15,
};
enum { MOST_GPUS = 8, MILLIWATTS = 100000, LOADED_MILLIJOULES = 5000000 };

typedef struct {
    unsigned int pid;
    unsigned long long used_memory;
    unsigned int gpu_instance;
    unsigned int compute_instance;
} process_info;

static struct {
    int generation; /* of handles: they end with a loss */
    int is_lost;
    int resets;
    int64_t began_ms; /* when its counter did */
    uint64_t began_millijoules;
} gpus[MOST_GPUS];
static int is_initialised;

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* The value of a setting, or NULL. */
static const char *setting(const char *key) {
    static char line[256];
    const size_t length = strlen(key);
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    const char *value = NULL;
    while (file != NULL && value == NULL && fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, key, length) == 0 && line[length] == '=') value = line + length + 1;
    }
    if (file != NULL) fclose(file);
    return value;
}

static const char *of_gpu(int gpu, const char *what) {
    char key[32];
    snprintf(key, sizeof key, "%d.%s", gpu, what);
    return setting(key);
}

static int number(const char *value, int otherwise) { return value == NULL ? otherwise : atoi(value); }

static void *handle_of(int gpu) { return (void *)(uintptr_t)(1 + gpu + MOST_GPUS * gpus[gpu].generation); }

/* Take in what has happened to the GPU; whether it is on the bus. */
static int is_there(int gpu) {
    const int resets = number(of_gpu(gpu, "resets"), 0);
    const int is_lost = number(of_gpu(gpu, "lost"), 0);
    if (resets != gpus[gpu].resets) {
        gpus[gpu].resets = resets;
        gpus[gpu].began_ms = now_ms();
        gpus[gpu].began_millijoules = 0;
    }
    if (is_lost && !gpus[gpu].is_lost) gpus[gpu].generation++;
    gpus[gpu].is_lost = is_lost;
    return !is_lost;
}

static int look_up(void *handle, int *gpu) {
    if (!is_initialised) return UNINITIALIZED;
    if (handle == NULL) return INVALID_ARGUMENT;
    *gpu = (int)(((uintptr_t)handle - 1) % MOST_GPUS);
    return is_there(*gpu) && handle == handle_of(*gpu) ? SUCCESS : GPU_IS_LOST;
}

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    if (setting("gpus") == NULL) return DRIVER_NOT_LOADED;
    if (is_initialised) return SUCCESS;
    is_initialised = 1;
    for (int gpu = 0; gpu < MOST_GPUS; gpu++) {
        gpus[gpu].began_ms = now_ms();
        gpus[gpu].began_millijoules = LOADED_MILLIJOULES;
    }
    return SUCCESS;
}

int nvmlShutdown(void) {
    is_initialised = 0;
    return SUCCESS;
}

const char *nvmlErrorString(int result) {
    (void)result;
    return "an error of the stand-in";
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = (unsigned int)number(setting("gpus"), 0);
    return is_initialised ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) {
    if (index >= (unsigned int)number(setting("gpus"), 0)) return INVALID_ARGUMENT;
    if (!is_there((int)index)) return GPU_IS_LOST;
    *handle = handle_of((int)index);
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    unsigned int index;
    if (sscanf(uuid, "GPU-%u-", &index) != 1) return NOT_FOUND;
    return nvmlDeviceGetHandleByIndex_v2(index, handle);
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned int size) {
    int gpu;
    const int result = look_up(handle, &gpu);
    if (result == SUCCESS) snprintf(uuid, size, "GPU-%d-5ca1ab1e", gpu);
    return result;
}

int nvmlDeviceGetName(void *handle, char *name, unsigned int size) {
    int gpu;
    const int result = look_up(handle, &gpu);
    if (result == SUCCESS) snprintf(name, size, "NVIDIA H100 80GB HBM3");
    return result;
}

int nvmlDeviceGetPowerManagementLimitConstraints(void *handle, unsigned int *least, unsigned int *most) {
    int gpu;
    *least = 200000;
    *most = 700000;
    return look_up(handle, &gpu);
}

int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *millijoules) {
    int gpu;
    const int result = look_up(handle, &gpu);
    const int period_ms = number(setting("period_ms"), 20);
    if (result != SUCCESS) return result;
    if (!number(of_gpu(gpu, "energy"), 1)) return NOT_SUPPORTED;
    const int64_t steps = (now_ms() - gpus[gpu].began_ms) / period_ms;
    *millijoules = gpus[gpu].began_millijoules + (uint64_t)(steps * period_ms) * MILLIWATTS / 1000;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(void *handle, unsigned int *milliwatts) {
    int gpu;
    const int result = look_up(handle, &gpu);
    *milliwatts = MILLIWATTS;
    return result == SUCCESS && !number(of_gpu(gpu, "power"), 1) ? NOT_SUPPORTED : result;
}

int nvmlDeviceGetMigMode(void *handle, unsigned int *current, unsigned int *pending) {
    int gpu;
    const int result = look_up(handle, &gpu);
    if (result != SUCCESS) return result;
    if (of_gpu(gpu, "mig") == NULL) return NOT_SUPPORTED;
    *current = *pending = (unsigned int)number(of_gpu(gpu, "mig"), 0);
    return SUCCESS;
}

static int processes(void *handle, const char *which, unsigned int *count, process_info *into) {
    int gpu;
    const int result = look_up(handle, &gpu);
    if (result != SUCCESS) return result;
    const unsigned int room = *count;
    const char *left = of_gpu(gpu, which);
    int length;
    unsigned int pid;
    for (*count = 0; left != NULL && sscanf(left, "%u%n", &pid, &length) == 1; left += length, ++*count) {
        if (into != NULL && *count < room) into[*count] = (process_info){.pid = pid};
    }
    return *count > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned int *count, process_info *into) {
    return processes(handle, "pids", count, into);
}

int nvmlDeviceGetMPSComputeRunningProcesses_v3(void *handle, unsigned int *count, process_info *into) {
    return processes(handle, "mps", count, into);
}

int nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int size) {
    char key[32];
    snprintf(key, sizeof key, "name.%u", pid);
    const char *value = setting(key);
    if (value == NULL) return NOT_FOUND;
    snprintf(name, size, "%s", value);
    return SUCCESS;
}
