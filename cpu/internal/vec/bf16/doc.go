// Package bf16 has the leaf loops of the Fast policy for keys and values in
// bfloat16: matrix products in AMX, or in AVX-512's VDPBF16PS, with sums in
// float32. They follow package vec: a strip is 32 rows side by side, a tile 64
// keys, and (m, l, o) of a strip is what package vec takes it for, so that
// states of both merge.
//
// # A block
//
// Operands are packed once and used often:
//
//	for each block of rows:   PackPairs   the queries of each strip
//	for each tile of keys:    PackKey or PackKeyF32, PackValue
//	                          Tile.Attend for all strips that see the tile
//
// One call of Attend does scores, softmax and outputs of any number of strips:
// a call for many is better than many calls, each of which loads and releases
// the configuration of the tiles. causalBlock in example_test.go is such a
// loop, with masks, a tile that is not full and rows that do not fill a strip.
// Scores with modifications take the pieces instead: Multiply for the products,
// a softmax of package vec, PackPairs for the weights and Multiply, with keep,
// for the outputs.
//
// Head dimensions are multiples of 32 up to 512 (Fits). Memory from Uint16s and
// Float32s begins at a cache line; any other is right too, and slower.
//
// # What the caller checks
//
//   - A tile with fewer than 64 keys, or with keys nobody may read, is filled up
//     with zeros, and these are hidden in Visible.
//   - A value that is not finite must not be hidden from a row: a weight of 0
//     does not hide it. PackValue reports it. Nor may a key that is not finite
//     meet queries in several parts, or be in several itself: infinity times a
//     part of 0 is NaN. PackKey reports it. Such a tile is left to package vec.
//
// # Accuracy
//
// Queries and keys that are bfloat16 enter products as they are. What was
// rotated in float32 does not fit: rounded, it would put an error of 2⁻⁹ of a
// score's size into the LSE. Such an operand is split into three parts that add
// up to it (Exact), for three products in place of one, or six where both sides
// are split. Weights are rounded to bfloat16 for the product with the values, l
// is a sum of weights that are not. TestAccuracyOfLongRows holds the errors
// against those of a naive program. Subnormal elements count as 0: the
// instructions say so.
//
// # Versions
//
// Rates are from go test -run - -bench . ./cpu/internal/vec/bf16 on one core of
// a Xeon with AMX, D = 128 and 512 rows, packing of the tile included, best of
// several runs. A float32 FMA peaks at 239 GFLOP/s there.
//
//  1. Scores with keys as operand A from their rows and queries as pairs, four
//     sums from two tiles of each operand, one load for each product; outputs
//     likewise, from transposed values. Keys and values get packed into tiles of
//     1 KB: rows of a cache some KB apart fall into few sets of the first-level
//     cache. The other order of operands, outputs by rows, would leave values
//     untransposed and transpose the weights, once for each strip.
//  2. Outputs with the four tiles of weights in registers: one load for each
//     product in place of one and a half.
//  3. m lags behind the maximum by up to 2⁸, so that few tiles rescale outputs.
//  4. Outputs and the next queries, which come from the second-level cache, are
//     prefetched during the softmax: 8 %.
//  5. 2^x by VREDUCEPS and VSCALEFPS: 3 %. Without the comparison that keeps
//     subnormals out 5 % more, and 14 times as long where there are some
//     (the benchmark "steep").
//
// That is 1050 GFLOP/s, 4.4 times the peak of float32; 710 with rotated
// queries, 510 with rotated keys. Tried in vain: the matrix unit at work on the
// scores of the next strip and the outputs of the one before, interleaved with
// the softmax. While its instructions are in flight AVX-512 has one port of two,
// and the times add up as before. The softmax takes a third of the time.
package bf16
