// Package amd64 writes the assembly of package vec for AVX2 and AVX-512. One
// generator serves both tiers where they differ in width only. Registers are
// chosen by hand.
//
//	go test ./cpu/internal/vec/asmgen/amd64 -update
//
// writes the files anew; without -update the same test compares them. It is a
// generator of our own, and not avo, because it then runs inside a test on any
// machine, with no module to download, and because the tiles choose their
// registers themselves.
//
// # Versions
//
// What was tried, in order, on an Intel core with two 512-bit multipliers and
// 48 KB of first-level cache. Shares are of the rate of a loop of independent
// FMAs, run in turns with the versions compared, about a third of a millisecond
// each; go test -bench . ./cpu/internal/vec times what is there now.
//
// Products, scores of a strip (64 keys, 128 features) and its values (128
// features, 64 keys), predicted 100 % by the ports, 98 % with the ends of tiles:
//
//   - 8 × 32 tile, one step a turn: scores 96 %, values 91 %.
//   - 12 × 32: scores 97 %, values 92 %. Ten loads for 16 FMAs were no limit,
//     so fewer loads bought little, and 64 rows are no multiple of 12. Dropped.
//   - eight steps a turn: scores 98 % (the loop ends predictably), but values
//     85 %. An instruction that loads V then strides over eight rows, more than
//     the prefetcher of the first-level cache follows.
//   - all 64 steps of a tile in a line for A with columns apart: each
//     instruction strides from tile to tile only. Values 95 %; with sums that
//     start from zero 98 %: the rest is the loading and scaling of C.
//   - PREFETCHT0 of the next columns of V, or of the next tile of C, in either
//     loop: no gain, up to 3 % lost. Dropped.
//   - 4 × 64 for few rows: 97 %. From 24 rows on 6 × 64: weights transposed
//     86 % to 95 %, and no loss elsewhere.
//
// Softmax of a strip, 64 keys: 15 instructions for each of 128 registers, two a
// cycle, are 960 cycles.
//
//   - one register of lanes after another, four chains for the maximum: some
//     1060 cycles.
//   - VREDUCEPS for the fraction, predicted 64 cycles less: wrong bits. It
//     breaks ties to even n, the shift breaks them to even n + 127.
//   - both registers together, predicted 40 cycles less for fewer ends of
//     loops: no gain; kept, as it is no longer.
//
// Columns, 64 rows of 128 features: shuffles have one port.
//
//   - widen, then turn 16 × 16 float32: 4 shuffles a register, some 2500 cycles.
//   - BF16 as pairs of features, turned and then split: 2 shuffles, 1100.
//   - F16 turned as 16 bits, then widened from memory: 2 shuffles, 1600.
//   - INT8 and INT4 turned as words of four and eight features, then taken
//     apart: 1 shuffle or a half, 1700 and 1600 where bytes widened first
//     took 2750.
//
// Factors of a scan with gates of channels (go test -bench Scan ./cpu: 2048 tokens,
// 4 heads, 128 channels; predicted 3 times the rate of loops in Go):
//
//   - differences and products by loops in Go, exponentials by SoftmaxRows: 26.1 ms,
//     two thirds of them in those loops.
//   - all in one loop, and sums of gates four at a time, as each waits for the one
//     before: 9.5 ms, of which products are half. The gradient, whose narrow products
//     are made wide by zeros too, 137 to 50 ms.
package amd64
