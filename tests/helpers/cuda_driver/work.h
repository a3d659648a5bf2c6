/* What the driver keeps (memory, streams, graphs) and how queued work runs. Included once, by driver.c. */
#define _GNU_SOURCE
#include <cuda.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum { COPY, KERNEL, RECORD, WAIT, LAUNCH };
enum { DEVICE, PINNED, KINDS };
typedef struct Op {
    int kind;
    long ticket;
    char *to_host, *from_host;
    CUdeviceptr to, from;
    size_t size;
    void *staged;
    void (*kernel)(long), *unused;
    long argument;
    struct CUevent_st *event;
    long awaited;
    struct CUgraph_st *graph;
    struct Op *next;
} Op;
typedef struct { Op *head, *tail; } Queue;
typedef struct { unsigned long address; size_t size; char *bytes; int live; } Block;
struct CUstream_st { Queue queue; struct CUgraph_st *recorded; int live, blocking, broken; pthread_t thread; };
struct CUevent_st { struct CUstream_st *stream; long ticket, done; int live; };
struct CUgraph_st { Queue queue; int live, executable; };
struct CUctx_st { int retained; };

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static struct CUctx_st primary;
static struct CUstream_st legacy = {.live = 1, .blocking = 1}, *streams[4096];
static struct CUevent_st *events[4096];
static struct CUgraph_st *graphs[8192];
static Block blocks[KINDS][8192];
static int block_count[KINDS], stream_count, event_count, graph_count, initialized, gpus = 1, version = 12060, running;
static unsigned long next_address = 0x100000000000;
static size_t total = 1ul << 30;
static long clock_ticks;
static CUresult sticky;
static char notes[8192];
static struct { char name[48]; int calls; CUresult next; int skip, times; } functions[64];
static __thread CUcontext stack[32];
static __thread int depth;

static CUresult note(const char *format, ...) {
    va_list list;
    va_start(list, format);
    size_t used = strlen(notes);
    vsnprintf(notes + used, sizeof notes - used, format, list);
    va_end(list);
    strncat(notes, "\n", sizeof notes - strlen(notes) - 1);
    return sticky = CUDA_ERROR_ILLEGAL_ADDRESS;
}

static int named(const char *name) {
    int i = 0;
    while (functions[i].name[0] && strcmp(functions[i].name, name)) i++;
    snprintf(functions[i].name, sizeof functions[i].name, "%s", name);
    return i;
}

static struct CUstream_st *recording_here(void) {
    for (int i = 0; i < stream_count; i++)
        if (streams[i]->recorded && pthread_equal(streams[i]->thread, pthread_self())) return streams[i];
    return NULL;
}

static CUresult enter(const char *name, int context, int unsafe) {
    pthread_mutex_lock(&lock);
    int i = named(name);
    functions[i].calls++;
    if (functions[i].times && functions[i].skip-- <= 0) return functions[i].times--, functions[i].next;
    /* Which context a thread has is told by the thread alone, whatever became of the GPU. */
    if (sticky && strcmp(name, "cuCtxPushCurrent_v2")) return sticky;
    if (!initialized && strcmp(name, "cuInit") && strcmp(name, "cuDriverGetVersion")) return CUDA_ERROR_NOT_INITIALIZED;
    if (context && (!depth || !primary.retained)) return CUDA_ERROR_INVALID_CONTEXT;
    struct CUstream_st *stream = unsafe ? recording_here() : NULL;
    if (stream) stream->broken = 1;
    return stream ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

static void leave(int *unused) { (void)unused, pthread_mutex_unlock(&lock); }

#define ENTER(context, unsafe)                                  \
    __attribute__((cleanup(leave))) int entered = 0;            \
    CUresult refused = enter(__func__, context, unsafe);        \
    (void)entered;                                              \
    if (refused) return refused

/* Memory. */

static Block *block_at(int kind, unsigned long address, size_t size) {
    for (int i = block_count[kind] - 1; i >= 0; i--) {
        Block *block = &blocks[kind][i];
        if (address >= block->address && address + size <= block->address + block->size) return block;
    }
    return NULL;
}

static size_t used(int kind) {
    size_t sum = 0;
    for (int i = 0; i < block_count[kind]; i++) sum += blocks[kind][i].live ? blocks[kind][i].size : 0;
    return sum;
}

static Block *new_block(int kind, size_t size) {
    Block *block = &blocks[kind][block_count[kind]++];
    *block = (Block){.size = size, .live = 1, .bytes = aligned_alloc(256, (size + 255) / 256 * 256)};
    memset(block->bytes, 0xA5, size);
    block->address = kind == PINNED ? (unsigned long)block->bytes : next_address;
    next_address += (size + 511) / 256 * 256;
    return block;
}

static CUresult free_block(int kind, unsigned long address) {
    Block *block = block_at(kind, address, 1);
    if (!block || block->address != address || !block->live) return CUDA_ERROR_INVALID_VALUE;
    block->live = 0;
    memset(block->bytes, 0xDD, block->size);
    return CUDA_SUCCESS;
}

static char *device_bytes(CUdeviceptr address, size_t size) {
    Block *block = block_at(DEVICE, address, size);
    if (block && block->live) return block->bytes + (address - block->address);
    note("device memory %#llx (%zu bytes) %s", address, size, block ? "was given back" : "is no allocation");
    return NULL;
}

/* Streams. */

static void push(Queue *queue, Op op) {
    Op *copy = malloc(sizeof op);
    *copy = op;
    copy->next = NULL;
    if (queue->tail) queue->tail->next = copy; else queue->head = copy;
    queue->tail = copy;
}

static struct CUstream_st *find_stream(CUstream handle) {
    if (handle == NULL || handle == CU_STREAM_LEGACY || handle == CU_STREAM_PER_THREAD) return &legacy;
    for (int i = 0; i < stream_count; i++)
        if (streams[i] == handle && handle->live) return handle;
    return NULL;
}

static void run_until(struct CUstream_st *stream, long ticket);

static void run_op(Op *op) {
    if (sticky) return;
    switch (op->kind) {
    case COPY: {
        char *to = op->to_host, *from = op->staged ? op->staged : op->from_host;
        Block *host = block_at(PINNED, (unsigned long)(to ? to : from), op->size);
        if (!to) to = device_bytes(op->to, op->size);
        if (!from) from = device_bytes(op->from, op->size);
        if (host && !host->live) note("page-locked memory %p was given back", (void *)host->bytes);
        if (to && from && !sticky) memcpy(to, from, op->size);
        break;
    }
    case KERNEL: running++, op->kernel(op->argument), running--; break;
    case RECORD: op->event->done = op->ticket; break;
    case WAIT:
        if (op->event->done < op->awaited) run_until(op->event->stream, op->awaited + 1);
        break;
    case LAUNCH:
        for (Op *inner = op->graph->queue.head; inner; inner = inner->next) run_op(inner);
    }
}

/* Run what a stream was given before a ticket; the legacy stream and blocking streams wait for each other. */
static void run_until(struct CUstream_st *stream, long ticket) {
    while (stream->queue.head && stream->queue.head->ticket < ticket) {
        Op *op = stream->queue.head;
        if (!(stream->queue.head = op->next)) stream->queue.tail = NULL;
        if (stream == &legacy) {
            for (int i = 0; i < stream_count; i++)
                if (streams[i]->blocking) run_until(streams[i], op->ticket);
        } else if (stream->blocking) run_until(&legacy, op->ticket);
        run_op(op);
        free(op);
    }
}

static CUresult enqueue(CUstream handle, Op op) {
    struct CUstream_st *stream = find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    op.ticket = ++clock_ticks;
    push(stream->recorded ? &stream->recorded->queue : &stream->queue, op);
    return CUDA_SUCCESS;
}

static CUresult synchronize(CUstream handle) {
    struct CUstream_st *stream = find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->recorded) return stream->broken = 1, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    run_until(stream, clock_ticks + 1);
    return sticky;
}
