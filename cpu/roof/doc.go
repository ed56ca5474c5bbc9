// Package roof measures what a machine can do at most: fused multiply-adds of
// float32 and reads of main memory, each with so many threads. A kernel's speed
// means little without them (Williams, Waterman, Patterson, "Roofline: an
// insightful visual performance model", https://doi.org/10.1145/1498765.1498785).
//
// The loops are assembly where there is some. The fallback is a loop over
// scalars in Go, far below what the machine can do; Result.Variant tells.
package roof
