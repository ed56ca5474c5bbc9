// Package kerneltest holds every backend to the contract of package kernel.
//
// A Case is data: a Problem (a Config, a Step and a seed for the inputs), or an
// operation. Check computes it with a backend and compares
//
//   - with a float64 oracle that shares no code with any kernel, under the
//     rule of flash-attention's tests: the error is at most twice (with a soft
//     cap three times) that of a naive computation in the same element types,
//     plus a rounding unit at the largest magnitude of the output;
//   - for the Exact policy also bit for bit with a scalar transcription of the
//     rules of package kernel, with the SHA-256 of the outputs recorded in
//     testdata/golden.txt, and by relative L2 error;
//   - with what must not matter: page size, batch, layout, split (identity.go).
//
// Memory is hostile throughout. What a kernel may not read is NaN or beyond a
// guard page; what it may not write is a sentinel that is looked at after.
//
// A backend's test is one call of Run. Check serves a command line.
//
// Axis letters are those of package kernel.
package kerneltest
