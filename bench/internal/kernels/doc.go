// Package kernels measures the attention kernels of the CPU backend beside the
// roofs of the machine and beside other libraries.
//
// # What is counted
//
// A case is attention of one sequence. A pair is a query and a key that it
// sees. With H query heads, G KV heads, D features a head, Nq queries and N
// keys, whose elements take B bytes:
//
//	FLOP  = 4·D·H·pairs                                 a multiply and an add for each feature of the score, and of the output
//	        10·D·H·pairs                                backward: scores again, and the gradients of weights, queries, keys, values
//	bytes = 2·N·G·D·B + 2·Nq·H·D·Bq                     each key and value once, each query read and each output written once
//	pairs = Nq·N full, N·(N+1)/2 causal (Nq = N), N in decode (Nq = 1)
//
// Backward reads and writes as much again, in F32, as gradients, and the LSE.
// The exponentials, and whatever a kernel reads again, are not counted.
// Queries and outputs are F32, and BF16 in prefill over BF16, where the matrix
// unit serves Fast. Of int8 and int4, a full page has codes of 8 or
// 4 bits, and a scale and a zero of 16 bits for each group; the last page, if
// it is not full, is F16. Their peers in ggml are q8_0 and q4_0.
//
// # The roof
//
// A case whose FLOP/bytes lies above peak/bandwidth is bounded by the peak of
// FMAs, any other by the bandwidth of main memory; package roof measures both,
// with as many threads, at the start and at the end of a run, and the better
// counts. A fraction above 1 is no contradiction: units that multiply BF16 or
// INT8 are faster than the FP32 peak, and a peer that attends to the same keys
// again and again finds some of them in a cache.
//
// # Memory
//
// Decode goes from layer to layer, as a model does: there are so many layers
// that their keys and values take a gigabyte, so that each is read from memory.
// Contiguous keys are [key, KV head, feature], row-major; paged ones lie as
// package kvcache lays them out, their pages in the random order that a cache
// in use comes to.
//
// # Time
//
// All contenders of a case are timed in turn, A B C A B C, until each has had
// its time, and the median of the samples counts. Planning is once a step of a
// model, not once a layer, and is not timed.
package kernels
