// Package attention computes scaled dot-product attention over long contexts.
//
// For query token t with query index i and head h, and KV head
// g = h/(Heads/KVHeads),
//
//	s[j]     = Scale · rot(Query[t,h], PosQ(i)) · rot(Key[j,g], PosK(j))   for the key indices j the mask lets i see
//	Out[t,h] = Σ_j exp(s[j] − LSE[t,h]) · Value[j,g]
//	LSE[t,h] = ln Σ_j exp(s[j])
//
// A query that sees no key has Out = 0 and LSE = −Inf. The other numeric rules
// are in package kernel. The kernels keep a running maximum and sum and never
// hold a row of s (Dao et al., "FlashAttention", arXiv 2205.14135,
// algorithm 1): for n queries of one head over m visible pairs, 2·(HeadDim +
// ValueDim) FLOPs a pair, and each key and value read once per block of
// queries.
//
// Work is divided by lifetime: New chooses a kernel for a layer type, Plan
// prepares a step from host slices, Run computes one layer of it and allocates
// nothing. See the Examples.
//
// What is attended, and from where, is data. A Mask is a union of Regions; a
// Position module (ReRoPE, SelfExtend, DCA, …) partitions the pairs into Terms,
// each with its own rotation of queries and keys; a Rotary method of package
// rope gives the frequencies; a Score changes the logits. One kernel pass with
// one online softmax computes all of it. A custom module is a value of these
// types: no code runs inside the kernel.
package attention
