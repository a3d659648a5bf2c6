/* A CUDA driver on host memory: the functions that the device layer calls, by NVIDIA's rules, with the prototypes of
 * NVIDIA's own cuda.h (a wrong one does not compile).
 *
 * Work runs late: what a stream is given waits in its queue until somebody synchronizes with it, so that data read
 * too early are stale every time and not only sometimes. Device pointers are addresses that no host code can read.
 * What CUDA leaves undefined (memory or handles used after they were given back) is an error here, and is noted.
 */
#include "work.h"

/* The driver's functions. */

EXPORT CUresult cuInit(unsigned int flags) {
    ENTER(0, 0);
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    if (!gpus) return CUDA_ERROR_NO_DEVICE;
    return initialized = 1, CUDA_SUCCESS;
}

EXPORT CUresult cuDriverGetVersion(int *result) {
    ENTER(0, 0);
    return *result = version, CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorString(CUresult error, const char **text) {
    static const struct { CUresult code; const char *words; } known[] = {
        {CUDA_SUCCESS, "no error"}, {CUDA_ERROR_INVALID_VALUE, "invalid argument"},
        {CUDA_ERROR_OUT_OF_MEMORY, "out of memory"}, {CUDA_ERROR_NOT_INITIALIZED, "initialization error"},
        {CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"}, {CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"},
        {CUDA_ERROR_INVALID_CONTEXT, "invalid device context"}, {CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"},
        {CUDA_ERROR_OPERATING_SYSTEM, "OS call failed or operation not supported on this OS"},
        {CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"},
        {CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "system has unsupported display driver / cuda driver combination"},
        {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"},
        {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"},
        {CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "dependency created on uncaptured work in another stream"},
        {CUDA_ERROR_UNKNOWN, "unknown error"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].code == error) return *text = known[i].words, CUDA_SUCCESS;
    return *text = NULL, CUDA_ERROR_INVALID_VALUE;
}

EXPORT CUresult cuGetErrorName(CUresult error, const char **text) { return cuGetErrorString(error, text); }

EXPORT CUresult cuDeviceGetCount(int *count) {
    ENTER(0, 0);
    return *count = gpus, CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    ENTER(0, 0);
    if (ordinal < 0 || ordinal >= gpus) return CUDA_ERROR_INVALID_DEVICE;
    return *device = ordinal, CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    ENTER(0, 0);
    snprintf(name, length, "Host GPU %d", device);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    ENTER(0, 0);
    if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) return *value = 8, CUDA_SUCCESS;
    if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) return *value = 7, CUDA_SUCCESS;
    return (void)device, CUDA_ERROR_INVALID_VALUE;
}

EXPORT CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device) {
    ENTER(0, 0);
    return (void)device, *major = 8, *minor = 7, CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    ENTER(0, 0);
    return (void)device, primary.retained++, *context = &primary, CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
    ENTER(0, 0);
    if (!primary.retained) return CUDA_ERROR_INVALID_CONTEXT;
    return (void)device, primary.retained--, CUDA_SUCCESS;
}

EXPORT CUresult cuCtxPushCurrent(CUcontext context) {
    ENTER(0, 0);
    if (context != &primary || !primary.retained) return CUDA_ERROR_INVALID_CONTEXT;
    return stack[depth++] = context, CUDA_SUCCESS;
}

EXPORT CUresult cuCtxPopCurrent(CUcontext *context) {
    pthread_mutex_lock(&lock);
    functions[named(__func__)].calls++;
    pthread_mutex_unlock(&lock);
    if (!depth) return CUDA_ERROR_INVALID_CONTEXT;
    depth--;
    if (context) *context = stack[depth];
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetCurrent(CUcontext *context) {
    ENTER(0, 0);
    return *context = depth ? stack[depth - 1] : NULL, CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetDevice(CUdevice *device) {
    ENTER(1, 0);
    return *device = 0, CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSynchronize(void) {
    ENTER(1, 1);
    run_until(&legacy, clock_ticks + 1);
    for (int i = 0; i < stream_count; i++) run_until(streams[i], clock_ticks + 1);
    return sticky;
}

EXPORT CUresult cuMemGetInfo(size_t *free_bytes, size_t *all) {
    ENTER(1, 0);
    return *free_bytes = total - used(DEVICE), *all = total, CUDA_SUCCESS;
}

EXPORT CUresult cuMemAlloc(CUdeviceptr *pointer, size_t size) {
    ENTER(1, 1);
    if (!size) return CUDA_ERROR_INVALID_VALUE;
    if (used(DEVICE) + size > total) return CUDA_ERROR_OUT_OF_MEMORY;
    return *pointer = new_block(DEVICE, size)->address, CUDA_SUCCESS;
}

EXPORT CUresult cuMemFree(CUdeviceptr pointer) {
    ENTER(1, 1);
    return free_block(DEVICE, pointer);
}

EXPORT CUresult cuMemHostAlloc(void **pointer, size_t size, unsigned int flags) {
    ENTER(1, 1);
    if (flags > 7 || !size) return CUDA_ERROR_INVALID_VALUE;
    if (used(PINNED) + size > total) return CUDA_ERROR_OUT_OF_MEMORY;
    return *pointer = new_block(PINNED, size)->bytes, CUDA_SUCCESS;
}

EXPORT CUresult cuMemFreeHost(void *pointer) {
    ENTER(1, 1);
    return free_block(PINNED, (unsigned long)pointer);
}

EXPORT CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t size, CUstream stream) {
    ENTER(1, 0);
    Op op = {.kind = COPY, .to = to, .from_host = (char *)from, .size = size};
    if (!block_at(DEVICE, to, size)) return CUDA_ERROR_INVALID_VALUE;
    /* Memory that is not page-locked is copied aside before the call returns. */
    if (!block_at(PINNED, (unsigned long)from, size)) op.staged = memcpy(malloc(size), from, size);
    return enqueue(stream, op);
}

EXPORT CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t size, CUstream stream) {
    ENTER(1, 0);
    if (!block_at(DEVICE, from, size)) return CUDA_ERROR_INVALID_VALUE;
    CUresult status = enqueue(stream, (Op){.kind = COPY, .to_host = to, .from = from, .size = size});
    /* Into memory that is not page-locked the copy is done when the call returns. */
    return status || block_at(PINNED, (unsigned long)to, size) ? status : synchronize(stream);
}

EXPORT CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
    ENTER(1, 0);
    if (!block_at(DEVICE, from, size) || !block_at(DEVICE, to, size)) return CUDA_ERROR_INVALID_VALUE;
    return enqueue(stream, (Op){.kind = COPY, .to = to, .from = from, .size = size});
}

EXPORT CUresult cuStreamCreate(CUstream *stream, unsigned int flags) {
    ENTER(1, 0);
    if (flags > 1) return CUDA_ERROR_INVALID_VALUE;
    *stream = calloc(1, sizeof **stream);
    (*stream)->live = 1, (*stream)->blocking = !flags;
    return streams[stream_count++] = *stream, CUDA_SUCCESS;
}

EXPORT CUresult cuStreamDestroy(CUstream handle) {
    ENTER(1, 0);
    struct CUstream_st *stream = find_stream(handle);
    if (!stream || stream == &legacy) return CUDA_ERROR_INVALID_HANDLE;
    return stream->live = 0, CUDA_SUCCESS;
}

EXPORT CUresult cuStreamSynchronize(CUstream stream) {
    ENTER(1, 0);
    return synchronize(stream);
}

EXPORT CUresult cuStreamWaitEvent(CUstream handle, CUevent event, unsigned int flags) {
    ENTER(1, 0);
    struct CUstream_st *stream = find_stream(handle);
    if (!stream || flags || !event->live) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->recorded) return stream->broken = 1, CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    if (!event->stream) return CUDA_SUCCESS;
    return enqueue(handle, (Op){.kind = WAIT, .event = event, .awaited = event->ticket});
}

EXPORT CUresult cuEventCreate(CUevent *event, unsigned int flags) {
    ENTER(1, 0);
    if (flags > 7) return CUDA_ERROR_INVALID_VALUE;
    *event = calloc(1, sizeof **event);
    (*event)->live = 1;
    return events[event_count++] = *event, CUDA_SUCCESS;
}

EXPORT CUresult cuEventRecord(CUevent event, CUstream handle) {
    ENTER(1, 0);
    struct CUstream_st *stream = find_stream(handle);
    if (!stream || !event->live) return CUDA_ERROR_INVALID_HANDLE;
    CUresult status = enqueue(handle, (Op){.kind = RECORD, .event = event});
    event->stream = stream, event->ticket = clock_ticks;
    return status;
}

EXPORT CUresult cuEventDestroy(CUevent event) {
    ENTER(1, 0);
    if (!event->live) return CUDA_ERROR_INVALID_HANDLE;
    return event->live = 0, CUDA_SUCCESS;
}

EXPORT CUresult cuStreamBeginCapture(CUstream handle, CUstreamCaptureMode mode) {
    ENTER(1, 0);
    struct CUstream_st *stream = find_stream(handle);
    if (!stream || stream == &legacy || stream->recorded || mode > 2) return CUDA_ERROR_INVALID_VALUE;
    stream->recorded = graphs[graph_count++] = calloc(1, sizeof **graphs);
    stream->recorded->live = 1;
    return stream->thread = pthread_self(), CUDA_SUCCESS;
}

EXPORT CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph) {
    __attribute__((cleanup(leave))) int entered = 0;
    CUresult refused = enter(__func__, 1, 0);
    struct CUstream_st *stream = find_stream(handle);
    (void)entered;
    if (!stream || !stream->recorded) return refused ? refused : CUDA_ERROR_INVALID_VALUE;
    if (!pthread_equal(stream->thread, pthread_self())) return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    /* The capture ends, whatever is answered. */
    if (!refused && stream->broken) refused = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    *graph = refused ? NULL : stream->recorded;
    stream->recorded->live = !refused;
    stream->recorded = NULL, stream->broken = 0;
    return refused;
}

EXPORT CUresult cuGraphInstantiate(CUgraphExec *result, CUgraph graph, unsigned long long flags) {
    ENTER(1, 0);
    if (!graph || !graph->live || flags) return CUDA_ERROR_INVALID_VALUE;
    struct CUgraph_st *executable = graphs[graph_count++] = calloc(1, sizeof **graphs);
    executable->live = executable->executable = 1;
    for (Op *op = graph->queue.head; op; op = op->next) push(&executable->queue, *op);
    return *result = (CUgraphExec)executable, CUDA_SUCCESS;
}

EXPORT CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream) {
    ENTER(1, 0);
    struct CUgraph_st *graph = (struct CUgraph_st *)handle;
    if (!graph->live) return note("a graph was launched after it was destroyed");
    return graph->executable ? enqueue(stream, (Op){.kind = LAUNCH, .graph = graph}) : CUDA_ERROR_INVALID_VALUE;
}

static CUresult destroy(struct CUgraph_st *graph, int executable) {
    if (!graph || !graph->live || graph->executable != executable) return CUDA_ERROR_INVALID_VALUE;
    return graph->live = 0, CUDA_SUCCESS;
}

EXPORT CUresult cuGraphDestroy(CUgraph graph) {
    ENTER(1, 0);
    return destroy(graph, 0);
}

EXPORT CUresult cuGraphExecDestroy(CUgraphExec graph) {
    ENTER(1, 0);
    return destroy((struct CUgraph_st *)graph, 1);
}

/* How cuda-python finds them: by the name without a version. */
#undef cuGetProcAddress
EXPORT CUresult cuGetProcAddress_v2(
    const char *symbol, void **function, int cuda, cuuint64_t flags, CUdriverProcAddressQueryResult *found) {
    Dl_info self;
    char name[128];
    dladdr((void *)cuGetProcAddress_v2, &self);
    void *library = dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    snprintf(name, sizeof name, "%s", strcmp(symbol, "cuGraphInstantiate") ? symbol : "cuGraphInstantiateWithFlags");
    if (!strcmp(symbol, "cuGetProcAddress")) snprintf(name, sizeof name, "cuGetProcAddress_v2");
    size_t length = strlen(name);
    snprintf(name + length, sizeof name - length, "_v2");
    if (!(*function = dlsym(library, name))) name[length] = 0, *function = dlsym(library, name);
    if (found) *found = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return (void)cuda, (void)flags, *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

/* What a test sets and asks. */

EXPORT void host_cuda_reset(int count, size_t memory, int driver) {
    memset(block_count, 0, sizeof block_count), memset(functions, 0, sizeof functions);
    stream_count = event_count = graph_count = initialized = depth = primary.retained = 0;
    legacy.queue = (Queue){0}, sticky = 0, notes[0] = 0;
    gpus = count, total = memory, version = driver;
}

EXPORT void host_cuda_fail(const char *name, int error, int skip, int times) {
    int i = named(name);
    functions[i].next = error, functions[i].skip = skip, functions[i].times = times;
}
EXPORT void host_cuda_lose(int error) { sticky = error; }
/* The GPU was reset: it answers again, and whatever it held is gone. Who retained the primary context still does. */
EXPORT void host_cuda_forget(void) {
    sticky = 0;
    for (int kind = 0; kind < KINDS; kind++)
        for (int i = 0; i < block_count[kind]; i++) blocks[kind][i].live = 0;
    for (int i = 0; i < stream_count; i++) streams[i]->live = 0;
    for (int i = 0; i < event_count; i++) events[i]->live = 0;
    for (int i = 0; i < graph_count; i++) graphs[i]->live = 0;
}
EXPORT int host_cuda_write(CUdeviceptr pointer, const void *from, size_t size) {
    char *to = device_bytes(pointer, size);
    return to ? memcpy(to, from, size), 1 : 0;
}
EXPORT int host_cuda_recording(CUstream handle) {
    for (int i = 0; i < stream_count; i++)
        if (streams[i]->recorded && (!handle || handle == streams[i])) return 1;
    return 0;
}
EXPORT int host_cuda_calls(const char *name) { return functions[named(name)].calls; }
EXPORT const char *host_cuda_notes(void) { return notes; }
EXPORT void host_cuda_version(int driver) { version = driver; }
EXPORT void host_cuda_retain(int count) { primary.retained = count; }
EXPORT int host_cuda_depth(void) { return depth; }
EXPORT int host_cuda_retained(void) { return primary.retained; }

EXPORT size_t host_cuda_live(const char *what) {
    size_t live = 0;
    if (!strcmp(what, "device")) return used(DEVICE);
    if (!strcmp(what, "pinned")) return used(PINNED);
    for (int i = 0; i < stream_count; i++) live += !strcmp(what, "streams") && streams[i]->live;
    for (int i = 0; i < event_count; i++) live += !strcmp(what, "events") && events[i]->live;
    for (int i = 0; i < graph_count; i++)
        live += graphs[i]->live && !strcmp(what, graphs[i]->executable ? "graphs" : "plain graphs");
    return live;
}

/* A kernel: what TensorRT and other libraries give a stream. */
EXPORT CUresult host_cuda_kernel(CUstream stream, void (*kernel)(long), long argument) {
    ENTER(1, 0);
    return enqueue(stream, (Op){.kind = KERNEL, .kernel = kernel, .argument = argument});
}

/* Where a kernel finds device memory; only while it runs. */
EXPORT void *host_cuda_bytes(CUdeviceptr pointer, size_t size) { return running ? device_bytes(pointer, size) : NULL; }
EXPORT int host_cuda_holds(CUdeviceptr pointer, size_t size) {
    Block *block = block_at(DEVICE, pointer, size);
    return block && block->live;
}
