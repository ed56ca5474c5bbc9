// Package cpu is the backend in Go, with assembly where there is some: the
// reference of the Exact policy and the fallback where there is no accelerator.
// It gives the same bits on every architecture that Go compiles for.
//
// Attention is FlashAttention's tiled loop (Dao et al., arXiv 2205.14135,
// algorithm 1) over rows: a row is one query token of one head. A block has
// up to 1024 rows of one sequence and one KV head, the heads of its group side
// by side, so that each key and value is loaded once for all of them. For a
// block, in block.go:
//
//	for each chunk of 512 keys:                      its own state (m, l, o) a row
//	    for each strip of 32 rows:
//	        for each tile of 64 keys that a row sees:
//	            for each Term with a pair in the tile:
//	                load and rotate the keys, once a tile; s = q·k; mods
//	            m' = max; rescale; p = E(s − m'); l += p; o += p·v
//	    merge the chunk's state into the row's
//	divide, round, store
//
// A block with few rows, as in decode, is no strip: package vec tells the two
// layouts, strip.go and rows.go are the two steps. A tile that all rows of a
// strip see, or none, is known by the extremes of their key intervals; of the
// others, which keys a row sees is a word of 64 bits (visible.go). Blocks are
// given to workers as they come free, the most costly first; where there are
// fewer blocks than workers, their chunks are computed side by side and merged
// in order, which is the same order, so the same bits.
//
// What is summed over queries (the gradients of keys and values, and
// ColumnStats) goes the other way: a worker owns some tiles of keys, and takes the
// blocks of queries in order (head.go).
//
// Under the Fast policy, strips of BF16 queries, keys and values run in the
// processor's matrix unit where it has one: matrix.go and package bf16.
package cpu
