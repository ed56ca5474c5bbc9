// Package vec has the leaf loops of the CPU backend: everything that touches a
// float in an inner loop, and nothing else. Each works on a whole tile, so that
// a call is paid once a tile.
//
// The generic Go versions here are the specification. Assembly for an
// architecture lies in files beside them, made by the generators in asmgen; which
// variant runs is chosen when the program starts (variant.go), and every
// variant gives the bits of the generic version under the Exact policy. The
// Fast policy runs the same assembly; in generic Go, where a fused
// multiply-add must be emulated, it multiplies and adds with two roundings.
// No version lets the compiler fuse: a product that feeds a sum is converted to
// float32 first.
//
// # Two layouts of a tile
//
// A tile is up to 64 keys against some rows (query token × head). What lies
// side by side in a vector register is
//
//	strip: 32 rows, for prefill           rows: 64 keys, or the features, for decode
//	  q[d·Lanes+i]                          q[r·ld+d]
//	  k[j·ld+d]                             k[d·Stride+j]   (transposed)
//	  s[j·Lanes+i]                          s[r·Stride+j]
//	  v[j·ld+d]                             v[j·ld+d]
//	  o[d·Lanes+i]                          o[r·ld+d]
//	  m, l, f, scale [Lanes]                m, l, f, scale [rows]
//
// In a strip the softmax of 32 rows runs vertically, with no step across the
// lanes of a register. With fewer rows most lanes would be idle; there keys and
// features take their place. Each sum runs in the same order in both.
//
// Rows can also take a tile as it is stored (MulAdd16, ChannelProduct,
// TokenProduct): widening it first costs more than a few rows' products.
package vec

import "github.com/longctx/longctx/kernel"

const (
	Lanes  = 32              // rows of a strip
	Stride = kernel.TileSize // keys of a tile: distance between rows of scores
)

// Pad is the distance between rows of dim features in scratch memory: a
// multiple of 16, and no multiple of 256, which would put the rows of a tile
// into a few sets of the first-level cache.
func Pad(dim int) int {
	ld := (dim + 15) &^ 15
	if ld%256 == 0 {
		ld += 16
	}
	return ld
}
