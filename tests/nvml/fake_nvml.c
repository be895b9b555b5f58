/* A stand-in for NVIDIA's libnvidia-ml.so.1, driven by files, so that the real binding and the
 * server can be tested without a GPU. What it answers is read again at each call from
 * $FAKE_NVML/state, one statement a line:
 *
 *   driver VERSION          of the kernel module; another one than LIBRARY_VERSION is a mismatch
 *   session NUMBER          handles of an earlier session answer "unknown error"
 *   fail CALL CODE [GPU]    CALL answers CODE (of one GPU, or of all); CALL may be *
 *   hang CALL               CALL does not return while this line stands
 *   gpu UUID NAME TOTAL USED   begins a GPU; sizes in MiB; spaces in NAME are written as _
 *   set KEY VALUE           of the GPU begun last: util temp power numa ecc pending failure
 *                           recovery mig lost nomem bus
 *   process PID MIB         on the GPU begun last
 *   instance UUID TOTAL USED   a MIG instance of the GPU begun last
 *   topology A B LEVEL      common ancestor of two GPUs, as nvmlGpuTopologyLevel_t
 *   nvlink A B              both are linked directly
 *   xid NUMBER GPU CODE     an event; waiting sets get those with a larger NUMBER than before
 *   hidden 1                processes are not told, their memory counts
 *   shift NUMBER            processes are told by pids that are so much larger, as in a container
 *   keeps SECONDS           a dead process holds its memory so long (-1: for ever)
 *
 * Engines add themselves: $FAKE_NVML/processes/GPU.PID holds a number of MiB. One whose process
 * has ended counts for as long as `keeps` says.
 */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef LIBRARY_VERSION
#define LIBRARY_VERSION "1.0"
#endif

enum { MAX_GPUS = 16, MAX_PROCESSES = 64, MAX_INSTANCES = 8, MAX_RULES = 64, MAX_DEAD = 256 };
enum {
    OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, TIMEOUT = 10, GPU_IS_LOST = 15, MISMATCH = 18, UNKNOWN = 999
};
#define MIB (1024ULL * 1024ULL)
#define EXPORT __attribute__((visibility("default")))

typedef struct { int gpu, instance; } Handle;
typedef Handle *Device;
typedef struct { unsigned pid; unsigned long long bytes; unsigned gi, ci; } ProcessInfo;
typedef struct { char uuid[96]; unsigned long long total, used; } Instance;
typedef struct {
    char uuid[96], name[96], bus[96];
    unsigned long long total, used, ecc;
    int util, temp, power, numa, pending, failure, recovery, mig, lost, nomem;
    int processes, instances;
    struct { unsigned pid; unsigned long long bytes; } process[MAX_PROCESSES];
    Instance instance[MAX_INSTANCES];
} Gpu;
typedef struct {
    char driver[64];
    long session;
    int gpus, hidden, shift, fails, hangs, topologies, links, xids;
    double keeps;
    Gpu gpu[MAX_GPUS];
    struct { char call[64]; int code, gpu; } fail[MAX_RULES];
    char hang[MAX_RULES][64];
    struct { int a, b, level; } topology[MAX_RULES];
    struct { int a, b; } link[MAX_RULES];
    struct { long number; int gpu, code; } xid[MAX_RULES];
} State;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static State state;
static Handle handles[MAX_GPUS][MAX_INSTANCES + 1];
static int users;
static long session;
static struct { unsigned pid; double since; } dead[MAX_DEAD];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int is_alive(unsigned pid) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    size_t got = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[got] = 0;
    char *end = strrchr(text, ')');
    return end && end[2] != 'Z' && end[2] != 'X';
}

static int still_counts(unsigned pid) {
    if (is_alive(pid)) return 1;
    for (int i = 0; i < MAX_DEAD; i++) {
        if (dead[i].pid != pid && dead[i].pid) continue;
        if (!dead[i].pid) { dead[i].pid = pid; dead[i].since = now(); }
        return state.keeps < 0 || now() - dead[i].since < state.keeps;
    }
    return 0;
}

static void set_key(Gpu *gpu, const char *key, const char *value) {
    struct { const char *key; int *place; } numbers[] = {
        {"util", &gpu->util}, {"temp", &gpu->temp}, {"power", &gpu->power}, {"numa", &gpu->numa},
        {"pending", &gpu->pending}, {"failure", &gpu->failure}, {"recovery", &gpu->recovery},
        {"mig", &gpu->mig}, {"lost", &gpu->lost}, {"nomem", &gpu->nomem},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(key, numbers[i].key)) *numbers[i].place = atoi(value);
    if (!strcmp(key, "ecc")) gpu->ecc = strtoull(value, NULL, 10);
    if (!strcmp(key, "bus")) snprintf(gpu->bus, sizeof gpu->bus, "%s", value);
}

static void read_statement(char *line) {
    char a[96] = "", b[96] = "";
    unsigned long long x = 0, y = 0;
    int i = 0, j = 0, k = 0;
    long n = 0;
    Gpu *gpu = state.gpus ? &state.gpu[state.gpus - 1] : NULL;
    if (sscanf(line, "driver %63s", state.driver) == 1) return;
    if (sscanf(line, "session %ld", &state.session) == 1) return;
    if (sscanf(line, "hidden %d", &state.hidden) == 1) return;
    if (sscanf(line, "shift %d", &state.shift) == 1) return;
    if (sscanf(line, "keeps %lf", &state.keeps) == 1) return;
    if (sscanf(line, "hang %63s", a) == 1 && state.hangs < MAX_RULES) {
        strcpy(state.hang[state.hangs++], a);
        return;
    }
    k = sscanf(line, "fail %63s %d %d", a, &i, &j);
    if (k >= 2 && state.fails < MAX_RULES) {
        strcpy(state.fail[state.fails].call, a);
        state.fail[state.fails].code = i;
        state.fail[state.fails++].gpu = k == 3 ? j : -1;
        return;
    }
    if (sscanf(line, "topology %d %d %d", &i, &j, &k) == 3 && state.topologies < MAX_RULES) {
        state.topology[state.topologies].a = i;
        state.topology[state.topologies].b = j;
        state.topology[state.topologies++].level = k;
        return;
    }
    if (sscanf(line, "nvlink %d %d", &i, &j) == 2 && state.links < MAX_RULES) {
        state.link[state.links].a = i;
        state.link[state.links++].b = j;
        return;
    }
    if (sscanf(line, "xid %ld %d %d", &n, &i, &j) == 3 && state.xids < MAX_RULES) {
        state.xid[state.xids].number = n;
        state.xid[state.xids].gpu = i;
        state.xid[state.xids++].code = j;
        return;
    }
    if (sscanf(line, "gpu %95s %95s %llu %llu", a, b, &x, &y) == 4 && state.gpus < MAX_GPUS) {
        gpu = &state.gpu[state.gpus];
        memset(gpu, 0, sizeof *gpu);
        strcpy(gpu->uuid, a);
        for (char *c = b; *c; c++) if (*c == '_') *c = ' ';
        strcpy(gpu->name, b);
        snprintf(gpu->bus, sizeof gpu->bus, "00000000:%02X:00.0", state.gpus + 1);
        gpu->total = x * MIB;
        gpu->used = y * MIB;
        gpu->temp = 40;
        gpu->recovery = -1;
        state.gpus++;
        return;
    }
    if (!gpu) return;
    if (sscanf(line, "set %95s %95s", a, b) == 2) set_key(gpu, a, b);
    if (sscanf(line, "process %d %llu", &i, &x) == 2 && gpu->processes < MAX_PROCESSES
        && still_counts((unsigned)i)) {
        gpu->process[gpu->processes].pid = (unsigned)i;
        gpu->process[gpu->processes++].bytes = x * MIB;
    }
    if (sscanf(line, "instance %95s %llu %llu", a, &x, &y) == 3 && gpu->instances < MAX_INSTANCES) {
        strcpy(gpu->instance[gpu->instances].uuid, a);
        gpu->instance[gpu->instances].total = x * MIB;
        gpu->instance[gpu->instances++].used = y * MIB;
    }
}

static void read_engines(const char *root) {
    char path[4096];
    snprintf(path, sizeof path, "%s/processes", root);
    DIR *directory = opendir(path);
    struct dirent *entry;
    while (directory && (entry = readdir(directory))) {
        int number;
        unsigned pid;
        unsigned long long mib = 0;
        char file_path[8192];
        if (sscanf(entry->d_name, "%d.%u", &number, &pid) != 2) continue;
        snprintf(file_path, sizeof file_path, "%s/%s", path, entry->d_name);
        FILE *file = fopen(file_path, "r");
        if (!file) continue;
        if (fscanf(file, "%llu", &mib) != 1) mib = 0;
        fclose(file);
        if (number < 0 || number >= state.gpus || !mib || !still_counts(pid)) continue;
        Gpu *gpu = &state.gpu[number];
        if (gpu->processes == MAX_PROCESSES) continue;
        gpu->process[gpu->processes].pid = pid;
        gpu->process[gpu->processes++].bytes = mib * MIB;
    }
    if (directory) closedir(directory);
}

static void read_state(void) {
    const char *root = getenv("FAKE_NVML");
    char path[4096], line[512];
    double keeps = state.keeps;
    memset(&state, 0, sizeof state);
    state.keeps = keeps;
    strcpy(state.driver, LIBRARY_VERSION);
    snprintf(path, sizeof path, "%s/state", root ? root : ".");
    FILE *file = fopen(path, "r");
    if (!file) return;
    /* Statements may come in any order, but who counts as dead depends on `keeps`. */
    state.keeps = 0;
    while (fgets(line, sizeof line, file)) sscanf(line, "keeps %lf", &state.keeps);
    rewind(file);
    while (fgets(line, sizeof line, file)) read_statement(line);
    fclose(file);
    read_engines(root ? root : ".");
}

static int is_hanging(const char *call) {
    for (int i = 0; i < state.hangs; i++) if (!strcmp(state.hang[i], call)) return 1;
    return 0;
}

/* What every call has in common; with OK the lock is held and the state is fresh. */
static int enter(const char *call, Device device) {
    pthread_mutex_lock(&lock);
    read_state();
    while (is_hanging(call)) {
        struct timespec pause = {0, 20 * 1000 * 1000};
        pthread_mutex_unlock(&lock);
        nanosleep(&pause, NULL);
        pthread_mutex_lock(&lock);
        read_state();
    }
    int code = OK, gpu = device ? device->gpu : -1;
    int is_init = !strcmp(call, "nvmlInitWithFlags");
    for (int i = 0; i < state.fails; i++)
        if ((!strcmp(state.fail[i].call, call) || !strcmp(state.fail[i].call, "*"))
            && (state.fail[i].gpu < 0 || state.fail[i].gpu == gpu))
            code = state.fail[i].code;
    if (!code && !is_init && !users) code = UNINITIALIZED;
    if (!code && !is_init && state.session != session) code = UNKNOWN;
    if (!code && device && gpu >= state.gpus) code = NOT_FOUND;
    if (!code && device && state.gpu[gpu].lost) code = GPU_IS_LOST;
    if (!code && device && device->instance >= state.gpu[gpu].instances) code = NOT_FOUND;
    if (code) pthread_mutex_unlock(&lock);
    return code;
}

#define ENTER(device)                               \
    do {                                            \
        int code_ = enter(__func__, device);        \
        if (code_) return code_;                    \
    } while (0)
#define RETURN(code)                                \
    do {                                            \
        int result_ = (code);                       \
        pthread_mutex_unlock(&lock);                \
        return result_;                             \
    } while (0)
#define GPU(device) (state.gpu[(device)->gpu])

EXPORT const char *nvmlErrorString(int code) {
    switch (code) {
        case NOT_SUPPORTED: return "Not Supported";
        case 4: return "Insufficient Permissions";
        case 9: return "Driver Not Loaded";
        case GPU_IS_LOST: return "GPU is lost";
        case 16: return "GPU requires reset";
        case MISMATCH: return "Driver/library version mismatch";
        default: return "Unknown Error";
    }
}

EXPORT int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    ENTER(NULL);
    if (strcmp(state.driver, LIBRARY_VERSION)) RETURN(MISMATCH);
    for (int i = 0; i < MAX_GPUS; i++)
        for (int j = 0; j <= MAX_INSTANCES; j++) {
            handles[i][j].gpu = i;
            handles[i][j].instance = j - 1;
        }
    users++;
    session = state.session;
    RETURN(OK);
}

EXPORT int nvmlShutdown(void) {
    pthread_mutex_lock(&lock);
    int code = users ? OK : UNINITIALIZED;
    users -= users > 0;
    RETURN(code);
}

EXPORT int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    ENTER(NULL);
    snprintf(version, length, "%s", state.driver);
    RETURN(OK);
}

EXPORT int nvmlDeviceGetCount_v2(unsigned *count) {
    ENTER(NULL);
    *count = (unsigned)state.gpus;
    RETURN(OK);
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) {
    ENTER(NULL);
    if (index >= (unsigned)state.gpus) RETURN(INVALID_ARGUMENT);
    *device = &handles[index][0];
    RETURN(state.gpu[index].lost ? GPU_IS_LOST : OK);
}

EXPORT int nvmlDeviceGetUUID(Device device, char *uuid, unsigned length) {
    ENTER(device);
    const char *found = device->instance < 0 ? GPU(device).uuid
                                             : GPU(device).instance[device->instance].uuid;
    snprintf(uuid, length, "%s", found);
    RETURN(OK);
}

EXPORT int nvmlDeviceGetName(Device device, char *name, unsigned length) {
    ENTER(device);
    if (device->instance < 0) snprintf(name, length, "%s", GPU(device).name);
    else snprintf(name, length, "%s MIG %lluMiB", GPU(device).name,
                  GPU(device).instance[device->instance].total / MIB);
    RETURN(OK);
}

typedef struct { unsigned long long total, free, used; } Memory;
EXPORT int nvmlDeviceGetMemoryInfo(Device device, Memory *memory) {
    ENTER(device);
    if (GPU(device).nomem) RETURN(NOT_SUPPORTED);
    unsigned long long used = GPU(device).used, total = GPU(device).total;
    if (device->instance >= 0) {
        used = GPU(device).instance[device->instance].used;
        total = GPU(device).instance[device->instance].total;
    } else
        for (int i = 0; i < GPU(device).processes; i++) used += GPU(device).process[i].bytes;
    memory->total = total;
    memory->used = used < total ? used : total;
    memory->free = total - memory->used;
    RETURN(OK);
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned *count, ProcessInfo *into) {
    ENTER(device);
    unsigned there = state.hidden || device->instance >= 0 ? 0 : (unsigned)GPU(device).processes;
    unsigned room = *count;
    *count = there;
    if (!there) RETURN(OK);
    if (room < there || !into) RETURN(INSUFFICIENT_SIZE);
    for (unsigned i = 0; i < there; i++) {
        into[i].pid = GPU(device).process[i].pid + (unsigned)state.shift;
        into[i].bytes = GPU(device).process[i].bytes;
        into[i].gi = into[i].ci = 0xFFFFFFFF;
    }
    RETURN(OK);
}

EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v3(Device device, unsigned *count, ProcessInfo *into) {
    (void)into;
    ENTER(device);
    *count = 0;
    RETURN(OK);
}

EXPORT int nvmlDeviceGetUtilizationRates(Device device, unsigned *rates) {
    ENTER(device);
    if (device->instance >= 0) RETURN(NOT_SUPPORTED);
    rates[0] = (unsigned)GPU(device).util;
    rates[1] = 0;
    RETURN(OK);
}

EXPORT int nvmlDeviceGetTemperature(Device device, unsigned sensor, unsigned *celsius) {
    (void)sensor;
    ENTER(device);
    *celsius = (unsigned)GPU(device).temp;
    RETURN(OK);
}

EXPORT int nvmlDeviceGetPowerUsage(Device device, unsigned *milliwatts) {
    ENTER(device);
    if (!GPU(device).power) RETURN(NOT_SUPPORTED);
    *milliwatts = (unsigned)GPU(device).power * 1000;
    RETURN(OK);
}

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} Pci;
EXPORT int nvmlDeviceGetPciInfo_v3(Device device, Pci *pci) {
    ENTER(device);
    memset(pci, 0, sizeof *pci);
    snprintf(pci->bus_id, sizeof pci->bus_id, "%.31s", GPU(device).bus);
    RETURN(OK);
}

EXPORT int nvmlDeviceGetNumaNodeId(Device device, int *node) {
    ENTER(device);
    *node = GPU(device).numa;
    RETURN(OK);
}

static int is_pair(int a, int b, Device one, Device two) {
    return (a == one->gpu && b == two->gpu) || (a == two->gpu && b == one->gpu);
}

EXPORT int nvmlDeviceGetTopologyCommonAncestor(Device one, Device two, unsigned *level) {
    ENTER(one);
    *level = 50;
    for (int i = 0; i < state.topologies; i++)
        if (is_pair(state.topology[i].a, state.topology[i].b, one, two))
            *level = (unsigned)state.topology[i].level;
    RETURN(OK);
}

EXPORT int nvmlDeviceGetP2PStatus(Device one, Device two, unsigned capability, unsigned *status) {
    ENTER(one);
    *status = 5;
    for (int i = 0; i < state.links; i++)
        if (capability == 2 && is_pair(state.link[i].a, state.link[i].b, one, two)) *status = 0;
    RETURN(OK);
}

EXPORT int nvmlDeviceGetMigMode(Device device, unsigned *current, unsigned *pending) {
    ENTER(device);
    *current = *pending = (unsigned)GPU(device).mig;
    RETURN(OK);
}

EXPORT int nvmlDeviceGetMaxMigDeviceCount(Device device, unsigned *count) {
    ENTER(device);
    *count = GPU(device).mig ? 7 : 0;
    RETURN(OK);
}

EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(Device device, unsigned index, Device *instance) {
    ENTER(device);
    if (index >= (unsigned)GPU(device).instances) RETURN(NOT_FOUND);
    *instance = &handles[device->gpu][index + 1];
    RETURN(OK);
}

EXPORT int nvmlDeviceGetGpuInstanceId(Device device, unsigned *id) {
    ENTER(device);
    *id = (unsigned)device->instance + 1;
    RETURN(device->instance < 0 ? INVALID_ARGUMENT : OK);
}

EXPORT int nvmlDeviceGetTotalEccErrors(Device device, unsigned type, unsigned counter,
                                       unsigned long long *count) {
    (void)counter;
    ENTER(device);
    *count = type == 1 ? GPU(device).ecc : 0;
    RETURN(OK);
}

EXPORT int nvmlDeviceGetRemappedRows(Device device, unsigned *corrected, unsigned *uncorrected,
                                     unsigned *pending, unsigned *failure) {
    ENTER(device);
    *corrected = *uncorrected = 0;
    *pending = (unsigned)GPU(device).pending;
    *failure = (unsigned)GPU(device).failure;
    RETURN(OK);
}

typedef struct {
    uint32_t id, scope;
    int64_t timestamp, latency;
    uint32_t type;
    int code;
    union { double d; unsigned u; unsigned long long ull; } value;
} Field;
EXPORT int nvmlDeviceGetFieldValues(Device device, int count, Field *fields) {
    ENTER(device);
    for (int i = 0; i < count; i++) {
        fields[i].code = NOT_SUPPORTED;
        if (fields[i].id == 230 && GPU(device).recovery >= 0) {
            fields[i].code = OK;
            fields[i].type = 1;
            fields[i].value.u = (unsigned)GPU(device).recovery;
        }
    }
    RETURN(OK);
}

typedef struct { long seen; } EventSet;
EXPORT int nvmlEventSetCreate(EventSet **set) {
    ENTER(NULL);
    *set = calloc(1, sizeof **set);
    for (int i = 0; i < state.xids; i++)
        if (state.xid[i].number > (*set)->seen) (*set)->seen = state.xid[i].number;
    RETURN(OK);
}

EXPORT int nvmlDeviceRegisterEvents(Device device, unsigned long long types, EventSet *set) {
    (void)types, (void)set;
    ENTER(device);
    RETURN(OK);
}

typedef struct { Device device; unsigned long long type, data; unsigned gi, ci; } EventData;
EXPORT int nvmlEventSetWait_v2(EventSet *set, EventData *event, unsigned milliseconds) {
    (void)milliseconds;
    ENTER(NULL);
    for (int i = 0; i < state.xids; i++) {
        if (state.xid[i].number <= set->seen) continue;
        set->seen = state.xid[i].number;
        event->device = &handles[state.xid[i].gpu][0];
        event->type = 8;
        event->data = (unsigned long long)state.xid[i].code;
        event->gi = event->ci = 0xFFFFFFFF;
        RETURN(OK);
    }
    RETURN(TIMEOUT);
}

EXPORT int nvmlEventSetFree(EventSet *set) {
    free(set);
    return OK;
}
