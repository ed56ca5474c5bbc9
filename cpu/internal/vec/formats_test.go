package vec

import (
	"math/rand/v2"
	"unsafe"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

func init() {
	leaves = append(leaves,
		leaf{"Rows8", setMove8(Rows8, false)},
		leaf{"Columns8", setMove8(Columns8, true)},
		leaf{"Channels", setChannels},
		leaf{"Tokens", setTokens},
		leaf{"SoftCap", setSoftCap},
		leaf{"AddProduct", setAddProduct},
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

func setMove8(f func(dst []float32, ld int, src []uint8, dtype tensor.DType, stride, n, dim, ahead int), columns bool) func(m *memory) func() {
	return func(m *memory) func() {
		n, dim, stride, ld, ahead, size := shape(m.r, columns)
		dtype := [3]tensor.DType{tensor.F8E4M3, tensor.F8E5M2, tensor.U8}[m.r.IntN(3)]
		src, dst := m.bytes((n-1)*stride+dim), m.floats(size, normal)
		return func() { f(dst, ld, src, dtype, stride, n, dim, ahead) }
	}
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

func setSoftCap(m *memory) func() {
	x, f := m.floats(upTo(m.r, 300), anyValues(m.r)), m.floats(2, anyValues(m.r))
	if m.r.IntN(2) == 0 {
		f[0], f[1] = m.r.Float32(), 30
	}
	return func() { SoftCap(x, f[0], f[1]) }
}

func setAddProduct(m *memory) func() {
	n, v := upTo(m.r, 300), anyValues(m.r)
	y, a, b := m.floats(n, v), m.floats(n+m.r.IntN(3), v), m.floats(n, v)
	return func() { AddProduct(kernel.Exact, y, a, b) }
}
