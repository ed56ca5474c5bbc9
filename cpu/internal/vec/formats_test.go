package vec

import (
	"math/rand/v2"
	"unsafe"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

func init() {
	leaves = append(leaves,
		leaf{"Channels", setChannels},
		leaf{"Tokens", setTokens},
	)
}

// bytes is n random bytes, those of whole words.
func (m *memory) bytes(n int) []uint8 {
	words := place[uint32](m, anyBits, (n+3)/4)
	for i := range words {
		words[i] = m.r.Uint32()
	}
	return unsafe.Slice((*uint8)(unsafe.Pointer(&words[0])), 4*len(words))[:n]
}

// parameters are n scales or zeros.
func (m *memory) parameters(n int) []uint16 {
	x := m.halves(n, anyValues(m.r), tensor.F16)
	if m.r.IntN(2) == 0 {
		for i := range x {
			x[i] = uint16(m.r.Uint32())
		}
	}
	return x
}

func codecAndDim(r *rand.Rand) (kernel.Codec, int) {
	if r.IntN(2) == 0 {
		return kernel.Int8, upTo(r, 260)
	}
	return kernel.Int4, 8 * upTo(r, 33)
}

func setChannels(m *memory) func() {
	columns := m.r.IntN(2) == 0
	n, _, _, ld, _, _ := shape(m.r, columns)
	codec, dim := codecAndDim(m.r)
	size := (dim-1)*ld + n
	if !columns {
		ld += dim
		size = (n-1)*ld + dim
	}
	stride := codec.RowBytes(dim) + m.r.IntN(2)*m.r.IntN(100)
	dst, codes := m.floats(size, normal), m.bytes((n-1)*stride+codec.RowBytes(dim))
	scale, zero := m.parameters(dim), m.parameters(dim)
	return func() { Channels(dst, ld, columns, codes, codec, stride, n, dim, scale, zero) }
}

func setTokens(m *memory) func() {
	r := m.r
	n, codec := upTo(r, 70), [2]kernel.Codec{kernel.Int8, kernel.Int4}[r.IntN(2)]
	group := 8 * (1 + r.IntN(8))
	if codec == kernel.Int8 {
		group = 1 + r.IntN(64)
	}
	groups := 1 + r.IntN(6)
	dim := group * groups
	ld, stride := dim+r.IntN(40), codec.RowBytes(dim)+r.IntN(2)*r.IntN(100)
	ss, zs := groups+r.IntN(9), groups+r.IntN(9)
	dst, codes := m.floats((n-1)*ld+dim, normal), m.bytes((n-1)*stride+codec.RowBytes(dim))
	scale, zero := m.parameters((n-1)*ss+groups), m.parameters((n-1)*zs+groups)
	return func() { Tokens(dst, ld, codes, codec, stride, n, dim, group, scale, ss, zero, zs) }
}
