/* A stand-in for libnvidia-ml.so.1: answers the calls that llm-hub makes through nvidia-ml-py from a description.

   The description is the file that STAND_IN_NVML names; llm_hub/testing/nvml.py writes it. Each line is a word and
   fields, with tabs between:

       init CODE | driver TEXT | cuda NUMBER | noise TEXT | hang CALL | crash CALL | count CODE
       gpu UUID NAME PCI TOTAL RESERVED USED MIG     MIG: 0, or the most instances plus one
       mig GPU PLACE UUID NAME TOTAL USED            an instance of a card, in one of its places
       process GPU PLACE PID MEMORY                  PLACE -1: on the card itself; MEMORY -1: not told
       fail GPU CALL CODE                            CALL *: every call about that card

   Signatures and structures are those of NVIDIA's NVML API Reference, as nvidia-ml-py calls them. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define MOST 64

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };

typedef struct { int gpu, place; char uuid[97], name[97]; unsigned long long total, used; } instance_t;
typedef struct { char uuid[97], name[97], pci[33]; unsigned long long total, reserved, used; int mig; } card_t;
typedef struct { int gpu, place; unsigned pid; unsigned long long memory; } process_t;
typedef struct { int gpu; char call[64]; int code; } fail_t;
typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } process_info_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2_t;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci_t;
typedef struct { unsigned sm, copy, dec, enc, jpeg, ofa, gpu_slices, compute_slices; unsigned long long mib; } attributes_t;

static card_t cards[MOST];
static instance_t instances[MOST];
static process_t processes[MOST];
static fail_t fails[MOST];
static int n_cards, n_instances, n_processes, n_fails, init_code, count_code, cuda, initialised;
static char driver[81], hang[64], crash[64];

static int field(char **rest, char *out, size_t size) {
    char *word = strsep(rest, "\t\n");
    if (!word) return 0;
    if (out) snprintf(out, size, "%s", word);
    return 1;
}

static long long number(char **rest) {
    char word[32] = "0";
    field(rest, word, sizeof word);
    return atoll(word);
}

static void load(void) {
    const char *path = getenv("STAND_IN_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[1024], word[32];
    n_cards = n_instances = n_processes = n_fails = init_code = count_code = cuda = 0;
    driver[0] = hang[0] = crash[0] = 0;
    if (!file) return;
    while (fgets(line, sizeof line, file)) {
        char *rest = line;
        if (!field(&rest, word, sizeof word)) continue;
        if (!strcmp(word, "init")) init_code = (int)number(&rest);
        else if (!strcmp(word, "count")) count_code = (int)number(&rest);
        else if (!strcmp(word, "cuda")) cuda = (int)number(&rest);
        else if (!strcmp(word, "driver")) field(&rest, driver, sizeof driver);
        else if (!strcmp(word, "hang")) field(&rest, hang, sizeof hang);
        else if (!strcmp(word, "crash")) field(&rest, crash, sizeof crash);
        else if (!strcmp(word, "noise")) { printf("%s\n", strsep(&rest, "\n")); fflush(stdout); }
        else if (!strcmp(word, "gpu") && n_cards < MOST) {
            card_t *one = &cards[n_cards++];
            field(&rest, one->uuid, sizeof one->uuid);
            field(&rest, one->name, sizeof one->name);
            field(&rest, one->pci, sizeof one->pci);
            one->total = (unsigned long long)number(&rest);
            one->reserved = (unsigned long long)number(&rest);
            one->used = (unsigned long long)number(&rest);
            one->mig = (int)number(&rest);
        } else if (!strcmp(word, "mig") && n_instances < MOST) {
            instance_t *one = &instances[n_instances++];
            one->gpu = (int)number(&rest);
            one->place = (int)number(&rest);
            field(&rest, one->uuid, sizeof one->uuid);
            field(&rest, one->name, sizeof one->name);
            one->total = (unsigned long long)number(&rest);
            one->used = (unsigned long long)number(&rest);
        } else if (!strcmp(word, "process") && n_processes < MOST) {
            process_t *one = &processes[n_processes++];
            one->gpu = (int)number(&rest);
            one->place = (int)number(&rest);
            one->pid = (unsigned)number(&rest);
            one->memory = (unsigned long long)number(&rest); /* -1 is NVML_VALUE_NOT_AVAILABLE */
        } else if (!strcmp(word, "fail") && n_fails < MOST) {
            fail_t *one = &fails[n_fails++];
            one->gpu = (int)number(&rest);
            field(&rest, one->call, sizeof one->call);
            one->code = (int)number(&rest);
        }
    }
    fclose(file);
}

/* What every call begins with: may it hang, crash or fail? A handle points into `cards` or `instances`. */
static int enter(const char *call, const void *handle) {
    int gpu = -1;
    if (!strcmp(hang, call)) for (;;) pause();
    if (!strcmp(crash, call)) abort();
    if (!initialised) return UNINITIALIZED;
    if (!handle) return SUCCESS;
    if ((const card_t *)handle >= cards && (const card_t *)handle < cards + MOST) gpu = (int)((const card_t *)handle - cards);
    else if ((const instance_t *)handle >= instances && (const instance_t *)handle < instances + MOST) gpu = ((const instance_t *)handle)->gpu;
    else return INVALID_ARGUMENT;
    for (int at = 0; at < n_fails; at++)
        if (fails[at].gpu == gpu && (!strcmp(fails[at].call, "*") || !strcmp(fails[at].call, call))) return fails[at].code;
    return SUCCESS;
}

#define ENTER(handle) do { int code = enter(__func__, handle); if (code) return code; } while (0)

static const instance_t *as_instance(const void *handle) {
    return (const instance_t *)handle >= instances && (const instance_t *)handle < instances + MOST ? handle : NULL;
}

API int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    load();
    if (!strcmp(hang, __func__)) for (;;) pause();
    if (!strcmp(crash, __func__)) abort();
    if (!init_code) initialised++;
    return init_code;
}

API int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

API int nvmlShutdown(void) {
    const char *path = getenv("STAND_IN_NVML_SHUTDOWN"); /* for the test that it is called */
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) { fprintf(file, "shutdown\n"); fclose(file); }
    if (!initialised) return UNINITIALIZED;
    initialised--;
    return SUCCESS;
}

API const char *nvmlErrorString(int code) {
    switch (code) {
        case 3: return "Not Supported";
        case 9: return "Driver Not Loaded";
        case 15: return "GPU is lost";
        case 18: return "Driver/library version mismatch";
        default: return "Unknown Error";
    }
}

API int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    ENTER(NULL);
    if (!driver[0]) return NOT_SUPPORTED;
    snprintf(out, size, "%s", driver);
    return SUCCESS;
}

API int nvmlSystemGetCudaDriverVersion_v2(int *out) {
    ENTER(NULL);
    *out = cuda;
    return cuda ? SUCCESS : NOT_SUPPORTED;
}

API int nvmlSystemGetProcessName(unsigned pid, char *out, unsigned size) {
    ENTER(NULL);
    for (int at = 0; at < n_processes; at++)
        if (processes[at].pid == pid) { snprintf(out, size, "/usr/bin/process-%u --with secret", pid); return SUCCESS; }
    return NOT_FOUND;
}

API int nvmlDeviceGetCount_v2(unsigned *out) {
    ENTER(NULL);
    *out = (unsigned)n_cards;
    return count_code;
}

API int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
    if (index >= (unsigned)n_cards) return INVALID_ARGUMENT;
    ENTER(&cards[index]);
    *out = &cards[index];
    return SUCCESS;
}

API int nvmlDeviceGetUUID(const void *handle, char *out, unsigned size) {
    ENTER(handle);
    snprintf(out, size, "%s", as_instance(handle) ? as_instance(handle)->uuid : ((const card_t *)handle)->uuid);
    return SUCCESS;
}

API int nvmlDeviceGetName(const void *handle, char *out, unsigned size) {
    ENTER(handle);
    snprintf(out, size, "%s", as_instance(handle) ? as_instance(handle)->name : ((const card_t *)handle)->name);
    return SUCCESS;
}

API int nvmlDeviceGetPciInfo_v3(const void *handle, pci_t *out) {
    ENTER(handle);
    if (as_instance(handle)) return INVALID_ARGUMENT;
    memset(out, 0, sizeof *out);
    snprintf(out->bus_id, sizeof out->bus_id, "%s", ((const card_t *)handle)->pci);
    sscanf(out->bus_id, "%x:%x:%x", &out->domain, &out->bus, &out->device);
    return SUCCESS;
}

API int nvmlDeviceGetMemoryInfo(const void *handle, memory_t *out) {
    ENTER(handle);
    const instance_t *part = as_instance(handle);
    const card_t *card = handle;
    out->total = part ? part->total : card->total;
    out->used = part ? part->used : card->used + card->reserved; /* version 1 counts both together */
    out->free = out->total - out->used;
    return SUCCESS;
}

API int nvmlDeviceGetMigMode(const void *handle, unsigned *current, unsigned *pending) {
    ENTER(handle);
    if (as_instance(handle)) return INVALID_ARGUMENT;
    *current = *pending = ((const card_t *)handle)->mig > 0;
    return SUCCESS;
}

API int nvmlDeviceGetMaxMigDeviceCount(const void *handle, unsigned *out) {
    ENTER(handle);
    *out = ((const card_t *)handle)->mig > 0 ? (unsigned)((const card_t *)handle)->mig - 1 : 0;
    return SUCCESS;
}

API int nvmlDeviceGetMigDeviceHandleByIndex(const void *handle, unsigned index, void **out) {
    ENTER(handle);
    for (int at = 0; at < n_instances; at++)
        if (&cards[instances[at].gpu] == handle && instances[at].place == (int)index) { *out = &instances[at]; return SUCCESS; }
    return NOT_FOUND;
}

API int nvmlDeviceGetAttributes_v2(const void *handle, attributes_t *out) {
    ENTER(handle);
    if (!as_instance(handle)) return NOT_SUPPORTED;
    memset(out, 0, sizeof *out);
    out->mib = as_instance(handle)->total >> 20;
    return SUCCESS;
}

static int running(const void *handle, unsigned *count, process_info_t *out) {
    const instance_t *part = as_instance(handle);
    int gpu = part ? part->gpu : (int)((const card_t *)handle - cards);
    unsigned found = 0, room = *count;
    for (int at = 0; at < n_processes; at++) {
        if (processes[at].gpu != gpu || processes[at].place != (part ? part->place : -1)) continue;
        if (out && found < room) {
            out[found].pid = processes[at].pid;
            out[found].memory = processes[at].memory;
            out[found].gpu_instance = out[found].compute_instance = 0xFFFFFFFFu;
        }
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

#ifdef OLD_DRIVER /* before 510 */
API int nvmlDeviceGetComputeRunningProcesses_v2(const void *handle, unsigned *count, process_info_t *out) {
    ENTER(handle);
    return running(handle, count, out);
}
#else
API int nvmlDeviceGetMemoryInfo_v2(const void *handle, memory_v2_t *out) {
    ENTER(handle);
    if (out->version != (2u << 24 | sizeof *out)) return 25; /* ARGUMENT_VERSION_MISMATCH */
    const instance_t *part = as_instance(handle);
    const card_t *card = handle;
    out->total = part ? part->total : card->total;
    out->reserved = part ? 0 : card->reserved;
    out->used = part ? part->used : card->used;
    out->free = out->total - out->reserved - out->used;
    return SUCCESS;
}

API int nvmlDeviceGetComputeRunningProcesses_v3(const void *handle, unsigned *count, process_info_t *out) {
    ENTER(handle);
    return running(handle, count, out);
}

API int nvmlDeviceGetGraphicsRunningProcesses_v3(const void *handle, unsigned *count, process_info_t *out) {
    ENTER(handle);
    (void)out;
    *count = 0;
    return SUCCESS;
}
#endif
