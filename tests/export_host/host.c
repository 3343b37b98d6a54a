// Runs every entry of an export on its test vectors, by the CUDA driver alone, and compares.
//
//     cc -std=gnu11 -O2 -I <folder of cuda.h> host.c -o host -ldl -lm
//     ./host DIR [--no-reset]
//
// DIR is what `ferrum-numba export --vectors` wrote. --no-reset fills the workspace with ones, as an
// engine does that forgets to zero it. Exit status: 0 all agree, 1 some do not, 2 refused.
#include <cuda.h>
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SCHEMA = 1, MOST_PARAMETERS = 32, MOST_SECONDS = 10, WRONG = 1, REFUSED = 2 };
#define die(...) (fputs("host: ", stderr), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), exit(REFUSED))

// --- the driver, found when it runs: nothing is linked
#define CALLS(X) X(cuInit) X(cuDeviceGet) X(cuDeviceGetName) X(cuDeviceGetAttribute) \
    X(cuDevicePrimaryCtxRetain) X(cuCtxSetCurrent) X(cuStreamCreate) X(cuStreamQuery) X(cuMemAlloc) \
    X(cuMemFree) X(cuMemcpyHtoD) X(cuMemcpyDtoH) X(cuMemsetD8) X(cuModuleLoadData) X(cuModuleUnload) \
    X(cuModuleGetFunction) X(cuFuncSetAttribute) X(cuLaunchKernelEx) X(cuGetErrorName)
#define DECLARE(f) static __typeof__(f) *p_##f;
#define NAME_(f) #f
#define NAME(f) NAME_(f)
#define LOAD(f) if (!(p_##f = (__typeof__(p_##f))dlsym(library, NAME(f)))) die("the driver lacks " NAME(f));
CALLS(DECLARE)

static void check(CUresult status, const char *what) {
    const char *name = "an error without a name";
    if (status) p_cuGetErrorName(status, &name), die("%s: %s", what, name);
}

static void load_driver(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) die("no NVIDIA driver: %s", dlerror());
    CALLS(LOAD)
    check(p_cuInit(0), "starting the driver");
}

// --- JSON: a tree of nodes, with strings in the text itself
typedef struct Json {
    char kind;  // '{', '[', '"', or '0' for numbers and literals
    char *key, *text;
    double number;
    struct Json *child, *next;
} Json;

static char *at;

static void skip(void) { at += strspn(at, " \t\r\n,"); }
static char *string(void) {
    char *start = ++at, *to = at;
    for (; *at != '"'; at++) {
        if (!*at) die("no JSON: a string has no end");
        if (*at == '\\' && *++at == 'u') at += 4;
        *to++ = *at;
    }
    at++;
    *to = 0;
    return start;
}

static Json *parse(void) {
    Json *node = calloc(1, sizeof *node), **end = &node->child;
    skip();
    node->kind = *at && strchr("{[\"", *at) ? *at : '0';
    if (node->kind == '"') {
        node->text = string();
    } else if (node->kind == '0') {
        char *start = at;
        node->number = *at == 't' ? 1 : strtod(at, &at);
        if (at == start) at += strspn(at, "truefalsn");
        if (at == start) die("no JSON at '%.20s'", at);
    } else {
        for (at++, skip(); *at != '}' && *at != ']'; skip()) {
            char *key = node->kind == '{' && *at == '"' ? string() : NULL;
            if (key) at += strspn(at, " :");
            *end = parse();
            (*end)->key = key;
            end = &(*end)->next;
        }
        at++;
    }
    return node;
}

static Json *find(const Json *node, const char *key) {
    for (Json *child = node->child; child; child = child->next)
        if (child->key && !strcmp(child->key, key)) return child;
    return NULL;
}

static Json *get(const Json *node, const char *key) {
    Json *found = find(node, key);
    if (!found) die("the manifest lacks %s", key);
    return found;
}

static double number(const Json *node, const char *key) { return get(node, key)->number; }
static const char *text(const Json *node, const char *key) { return get(node, key)->text; }

// --- a formula: a whole number, "M", or [operator, formula, formula]
static int64_t evaluate(const Json *formula, int64_t M) {
    if (formula->kind == '0') return (int64_t)formula->number;
    if (formula->kind == '"') return M;
    int64_t a = evaluate(formula->child->next, M), b = evaluate(formula->child->next->next, M);
    if (!strcmp(formula->child->text, "+")) return a + b;
    if (!strcmp(formula->child->text, "*")) return a * b;
    if (!strcmp(formula->child->text, "ceil_div")) return (a + b - 1) / b;
    die("no formula has the operator %s", formula->child->text);
}

static char *read_file(const char *folder, const char *name, size_t *size) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) die("%s cannot be read", path);
    char *data = calloc(1, (*size = (size_t)ftell(file)) + 1);
    rewind(file);
    if (fread(data, 1, *size, file) != *size) die("%s cannot be read", path);
    fclose(file);
    return data;
}

// the driver must not see a cubin that is cut off
static char *read_recorded(const char *folder, const Json *record) {
    size_t size;
    char *data = read_file(folder, text(record, "file"), &size);
    double known = number(record, "bytes");
    if (size != known) die("%s is damaged: %zu bytes for %.0f", text(record, "file"), size, known);
    return data;
}

// --- comparing
static size_t element_bytes(const char *type) { return strchr("FI", *type) && type[1] == '3' ? 4 : 2; }

static double element(const char *type, const void *data, size_t i) {
    uint16_t bits = ((const uint16_t *)data)[i];
    if (!strcmp(type, "F32")) return ((const float *)data)[i];
    if (!strcmp(type, "I32")) return ((const int32_t *)data)[i];
    if (!strcmp(type, "U16")) return bits;
    if (!strcmp(type, "BF16")) return (union { uint32_t bits; float value; }){(uint32_t)bits << 16}.value;
    int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    double value = exponent == 31 ? (mantissa ? NAN : INFINITY)
        : exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return bits >> 15 ? -value : value;
}

static int agrees(const Json *record, const void *got, const char *type, const void *want, size_t count,
                  const char *symbol) {
    double squares = 0, wanted = 0, largest = 0, peak = 0;
    for (size_t i = 0; i < count; i++) {
        double w = element(type, want, i), d = fabs(element(text(record, "out"), got, i) - w);
        if (!isfinite(d)) d = INFINITY;
        squares += d * d, wanted += w * w, largest = fmax(largest, d), peak = fmax(peak, fabs(w));
    }
    double rel = sqrt(squares) / fmax(sqrt(wanted), 1e-300), max = largest / fmax(peak, 1e-300);
    const Json *most = get(record, "tolerance");
    int ok = rel <= number(most, "rel") && max <= number(most, "max");
    printf("%-9s %s  rel_error %.1e  max_error %.1e\n", ok ? "ok" : "MISMATCH", symbol, rel, max);
    return ok;
}

// --- one entry on one vector; what the host takes for it stays until the end
static CUdeviceptr on_gpu(const void *data, size_t size, int byte) {
    CUdeviceptr address;
    check(p_cuMemAlloc(&address, size ? size : 1), "allocating");
    if (size) check(data ? p_cuMemcpyHtoD(address, data, size) : p_cuMemsetD8(address, byte, size), "filling");
    return address;
}

static void finish(CUstream stream, const char *symbol) {
    CUresult status;
    for (time_t began = time(NULL); (status = p_cuStreamQuery(stream)) == CUDA_ERROR_NOT_READY; usleep(100)) {
        if (time(NULL) - began <= MOST_SECONDS) continue;
        printf("HANGS     %s: its blocks still wait for each other\n", symbol), fflush(stdout), _exit(WRONG);
    }
    check(status, symbol);
}

static unsigned set_attributes(const Json *entry, CUlaunchAttribute *next) {
    const CUlaunchAttribute *first = next;
    const Json *x = get(entry, "cluster")->child, *y = x->next, *z = y->next;
    if (x->number * y->number * z->number > 1)
        *next++ = (CUlaunchAttribute){.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                                      .value.clusterDim = {x->number, y->number, z->number}};
    if (number(entry, "programmatic"))
        *next++ = (CUlaunchAttribute){.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                                      .value.programmaticStreamSerializationAllowed = 1};
    if (number(entry, "cooperative"))
        *next++ = (CUlaunchAttribute){.id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE, .value.cooperative = 1};
    return (unsigned)(next - first);
}

static CUfunction load(const char *folder, const Json *entry, CUmodule *module) {
    CUfunction function;
    const char *symbol = text(entry, "symbol");
    check(p_cuModuleLoadData(module, read_recorded(folder, entry)), text(entry, "file"));
    check(p_cuModuleGetFunction(&function, *module, symbol), symbol);
    check(p_cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                               number(entry, "smem_bytes")), symbol);
    if (number(entry, "allow_large_cluster"))
        check(p_cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1), symbol);
    return function;
}

static int run(const char *folder, const Json *entry, const Json *record, CUfunction function,
               CUstream stream, int workspace_byte) {
    char *file = read_recorded(folder, record), *data = file + 8 + *(uint64_t *)file;
    at = strndup(file + 8, (size_t)(data - file - 8));
    const Json *tensors = parse(), *expected = get(tensors, "expected"), *workspace = get(record, "workspace");
    const Json *ends = get(expected, "data_offsets")->child, *grid = get(record, "grid")->child;
    const char *type = text(expected, "dtype"), *want = data + (size_t)ends->number;
    size_t count = (size_t)(ends->next->number - ends->number) / element_bytes(type);
    size_t out_bytes = count * element_bytes(text(record, "out"));
    int64_t M = (int64_t)number(record, "M");
    uint64_t values[MOST_PARAMETERS] = {0};  // of 4 bytes the driver reads the low half
    void *slots[MOST_PARAMETERS];
    CUdeviceptr out = 0, buffers[MOST_PARAMETERS];
    int n = 0, num_buffers = 0, ok = 1;
    for (const Json *p = get(entry, "parameters")->child; p && n < MOST_PARAMETERS; p = p->next, n++) {
        const char *name = text(p, "name"), *access = find(p, "access") ? text(p, "access") : "";
        slots[n] = &values[n];
        if (!strcmp(access, "workspace")) {
            values[n] = on_gpu(NULL, (size_t)evaluate(get(workspace, name), M), workspace_byte);
        } else if (!strcmp(access, "write")) {
            out = values[n] = on_gpu(NULL, out_bytes, 0xff);
        } else if (!strcmp(access, "read")) {
            const Json *place = get(get(tensors, name), "data_offsets")->child;
            size_t begin = (size_t)place->number, end = (size_t)place->next->number;
            values[n] = on_gpu(data + begin, end - begin, 0);
        } else {
            values[n] = (uint32_t)evaluate(get(get(record, "scalars"), name), M);
            continue;
        }
        buffers[num_buffers++] = values[n];
    }
    CUlaunchAttribute attributes[3] = {0};
    const Json *block = get(entry, "block")->child;
    CUlaunchConfig config = {
        evaluate(grid, M), evaluate(grid->next, M), evaluate(grid->next->next, M), block->number,
        block->next->number, block->next->next->number, number(entry, "smem_bytes"), stream, attributes,
        set_attributes(entry, attributes)};
    char *got = malloc(out_bytes);
    for (int i = 0; i < 2 && ok; i++) {  // the second one finds the workspace as the first one left it
        check(p_cuMemsetD8(out, 0xff, out_bytes), "filling");
        check(p_cuLaunchKernelEx(&config, function, slots, NULL), text(entry, "symbol"));
        finish(stream, text(entry, "symbol"));
        check(p_cuMemcpyDtoH(got, out, out_bytes), "copying");
        ok = agrees(record, got, type, want, count, text(entry, "symbol"));
    }
    while (num_buffers) check(p_cuMemFree(buffers[--num_buffers]), "freeing");
    return ok;
}

// a cubin of sm_90a runs on 9.0 alone, one of sm_80 on 8.0 and later of 8
static void refuse_arch(const char *arch, int major, int minor, const char *gpu) {
    char *rest;
    long wanted = strtol(arch + 3, &rest, 10);
    int runs = *rest ? wanted == 10 * major + minor : wanted / 10 == major && wanted % 10 <= minor;
    if (!runs) die("the cubins are for %s; %s is sm_%d%d", arch, gpu, major, minor);
}

int main(int argc, char **argv) {
    if (argc < 2) die("usage: host DIR [--no-reset]");
    int byte = argc > 2 && !strcmp(argv[2], "--no-reset") ? 0xff : 0, major, minor, good = 0, all = 0;
    char name[256];
    size_t size;
    CUdevice device;
    CUcontext context;
    CUstream stream;
    at = read_file(argv[1], "manifest.json", &size);
    const Json *manifest = parse();
    if (number(manifest, "schema") != SCHEMA)
        die("this reads schema %d; the manifest has schema %.0f", SCHEMA, number(manifest, "schema"));
    load_driver();
    check(p_cuDeviceGet(&device, 0), "the first GPU");
    check(p_cuDeviceGetName(name, sizeof name, device), "its name");
    check(p_cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device), name);
    check(p_cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device), name);
    check(p_cuDevicePrimaryCtxRetain(&context, device), name);
    check(p_cuCtxSetCurrent(context), name);
    check(p_cuStreamCreate(&stream, CU_STREAM_DEFAULT), name);
    for (const Json *entry = get(manifest, "entries")->child; entry; entry = entry->next) {
        CUmodule module;
        refuse_arch(text(entry, "arch"), major, minor, name);
        if (!find(entry, "vectors")) die("%s has no vectors: export with --vectors", text(entry, "symbol"));
        CUfunction function = load(argv[1], entry, &module);
        for (const Json *record = get(entry, "vectors")->child; record; record = record->next, all++)
            good += run(argv[1], entry, record, function, stream, byte);
        check(p_cuModuleUnload(module), text(entry, "symbol"));
    }
    printf("%d of %d vectors agree on %s\n", good, all, name);
    return good == all ? 0 : WRONG;
}
