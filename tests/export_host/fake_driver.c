// A libcuda.so.1 of host memory, so that the hosts are tested with no GPU: a launch is written to a
// log, and what it would have computed is read from a file.
//
//     cc -shared -fPIC -I <folder of cuda.h> fake_driver.c -o libcuda.so.1 -ldl
//
// FAKE_CUDA names a folder with, for each symbol, <symbol>.txt: the kinds of its parameters (P or
// U), the index and bytes of its result, how many buffers must be zero, and index and bytes of each;
// and <symbol>.bin, the result. Where such a buffer is not zero, the result is.
// FAKE_CC is the GPU's compute capability, 90 by default; FAKE_LOAD the error that loading gives.
#include <cuda.h>
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char loaded[256];

static FILE *open_file(const char *name, const char *ending, const char *mode) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s%s", getenv("FAKE_CUDA"), name, ending);
    return fopen(path, mode);
}

static int from_environment(const char *name, int otherwise) {
    return getenv(name) ? atoi(getenv(name)) : otherwise;
}

CUresult cuInit(unsigned flags) { return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { return *version = 13000, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int index) { return *device = index, CUDA_SUCCESS; }
CUresult cuDeviceGetName(char *name, int size, CUdevice device) {
    return snprintf(name, size, "fake GPU %d", device), CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    int capability = from_environment("FAKE_CC", 90) + device;
    int major = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
    return *value = major ? capability / 10 : capability % 10, CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    return *context = (CUcontext)(intptr_t)(device + 1), CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext context) { return context ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT; }
CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    return *stream = (CUstream)(intptr_t)(flags + 7), CUDA_SUCCESS;
}
CUresult cuStreamQuery(CUstream stream) { return stream ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; }
CUresult cuMemAlloc(CUdeviceptr *address, size_t size) {
    return *address = (CUdeviceptr)aligned_alloc(256, (size + 255) / 256 * 256), CUDA_SUCCESS;
}
CUresult cuMemFree(CUdeviceptr address) { return free((void *)address), CUDA_SUCCESS; }
CUresult cuMemcpyHtoD(CUdeviceptr to, const void *from, size_t size) {
    return memcpy((void *)to, from, size), CUDA_SUCCESS;
}
CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t size) {
    return memcpy(to, (const void *)from, size), CUDA_SUCCESS;
}
CUresult cuMemsetD8(CUdeviceptr to, unsigned char byte, size_t size) {
    return memset((void *)to, byte, size), CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    *module = (CUmodule)1;
    if (memcmp(image, "\177ELF", 4)) return CUDA_ERROR_INVALID_IMAGE;
    return from_environment("FAKE_LOAD", CUDA_SUCCESS);
}
CUresult cuModuleUnload(CUmodule module) { return module ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    snprintf(loaded, sizeof loaded, "%s", name);
    return *function = (CUfunction)module, CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    FILE *log = open_file("log", "", "a");
    fprintf(log, "%s attribute %d = %d\n", loaded, attribute, value);
    return fclose(log), function ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
CUresult cuGetErrorName(CUresult error, const char **name) {
    *name = error == CUDA_ERROR_NO_BINARY_FOR_GPU ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : "CUDA_ERROR_OTHER";
    return CUDA_SUCCESS;
}

static void write_log(const CUlaunchConfig *c, const char *kinds, void **values) {
    FILE *log = open_file("log", "", "a");
    unsigned cluster = 1, programmatic = 0;
    for (unsigned i = 0; i < c->numAttrs; i++) {
        if (c->attrs[i].id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) cluster = c->attrs[i].value.clusterDim.x;
        if (c->attrs[i].id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) programmatic = 1;
    }
    fprintf(log, "%s grid %u %u %u block %u %u %u smem %u cluster %u programmatic %u scalars", loaded,
            c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ,
            c->sharedMemBytes, cluster, programmatic);
    for (int i = 0; kinds[i]; i++)
        if (kinds[i] == 'U') fprintf(log, " %u", *(uint32_t *)values[i]);
    fputc('\n', log);
    fclose(log);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **values, void **extra) {
    char kinds[64];
    int out, buffers, index, zero = 1;
    size_t size, length;
    FILE *facts = open_file(loaded, ".txt", "r"), *result = open_file(loaded, ".bin", "rb");
    if (!function || extra || !facts || !result) return CUDA_ERROR_INVALID_HANDLE;
    if (fscanf(facts, "%63s %d %zu %d", kinds, &out, &size, &buffers) != 4) return CUDA_ERROR_UNKNOWN;
    write_log(config, kinds, values);
    for (; buffers; buffers--) {
        if (fscanf(facts, "%d %zu", &index, &length) != 2) return CUDA_ERROR_UNKNOWN;
        const char *bytes = *(const char **)values[index];
        for (size_t i = 0; i < length; i++) zero = zero && !bytes[i];
    }
    char *to = *(char **)values[out];
    memset(to, 0, size);
    if (zero && fread(to, 1, size, result) != size) return CUDA_ERROR_UNKNOWN;
    return fclose(facts), fclose(result), CUDA_SUCCESS;
}

// how cuda-bindings finds all others
CUresult cuGetProcAddress(const char *name, void **function, int version, cuuint64_t flags,
                          CUdriverProcAddressQueryResult *found) {
    char newer[256];
    snprintf(newer, sizeof newer, "%s_v2", name);
    *function = dlsym(RTLD_DEFAULT, newer);
    if (!*function) *function = dlsym(RTLD_DEFAULT, name);
    (void)version, (void)flags;
    if (found) *found = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
