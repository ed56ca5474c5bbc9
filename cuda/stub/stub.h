#ifndef LONGCTX_STUB_H
#define LONGCTX_STUB_H

#include <cuda.h>

// The functions of the driver, found when cuInit is called; 0 those that it
// does not have. Names end with 0.
extern void *longctx_stub_calls[];
extern const char *const longctx_stub_names[];

// The result of a function that is not there.
CUresult longctx_stub_absent(void);

#endif
