package kerneltest

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Copier moves bytes between this process and the buffers of a backend that
// are not host memory. Such a backend implements it to be checked.
type Copier interface {
	CopyIn(dst tensor.Buffer, src []byte) error
	CopyOut(dst []byte, src tensor.Buffer) error
}

// memory holds the tensors of one run. Every element that is not set is
// poison: a NaN of a known payload (of codes, which have none, a number), which
// no kernel may read into a result nor overwrite.
type memory struct {
	backend kernel.Backend
	blocks  []*block
}

type block struct {
	name   string
	view   tensor.View // in host memory
	host   []byte
	before []byte        // host as it was handed over
	output bool          // the elements of view may change, the rest of host not
	device tensor.Buffer // nil where the backend reads host memory
	free   func()
}

var poisonBits = map[tensor.DType]uint32{tensor.F32: 0x7fdeadbe, tensor.F16: 0x7eba, tensor.BF16: 0x7fda, tensor.F8E4M3: 0x7f, tensor.F8E5M2: 0x7d, tensor.U8: 0xa5}

// Layout says how tensors lie in memory. No Layout changes a result.
type Layout struct {
	Gap        int  // rows of poison before, between and after sequences of contiguous keys, and around other tensors
	Pad        int  // poisoned features after the features of each head
	HeadsFirst bool // heads before tokens: [heads, tokens, dim], pages [page, heads, slot, dim]
	Spread     int  // elements from one feature to the next; 0: 1
}

// put makes a tensor of poison. Rows are gapped by l, except those of keys
// (gap false), whose gaps lie within the view.
func (m *memory) put(name string, dtype tensor.DType, l Layout, output, gap bool, shape ...int64) (*block, error) {
	outer := append([]int64(nil), shape...)
	if gap {
		outer[0] += 2 * int64(l.Gap)
	}
	v := tensor.View{DType: dtype, Rank: len(shape)}
	order := []int{0, 1, 2, 3}[:len(shape)]
	if l.HeadsFirst {
		switch len(shape) {
		case 2:
			order = []int{1, 0}
		case 3:
			order = []int{1, 0, 2}
		case 4:
			order = []int{0, 2, 1, 3}
		}
	}
	n, last := int64(1), len(shape)-1
	for k := last; k >= 0; k-- {
		d := order[k]
		v.Shape[d], v.Stride[d] = outer[d], n
		size := outer[d]
		if k == last && len(shape) > 2 {
			v.Stride[d] = int64(max(l.Spread, 1))
			size = size*v.Stride[d] + int64(l.Pad)
		}
		n *= size
	}
	host, free, err := guarded(int(n * dtype.Size()))
	if err != nil {
		return nil, err
	}
	b := &block{name: name, host: host, output: output, free: free}
	for i := range n {
		b.setBits(dtype, i, poisonBits[dtype])
	}
	v.Buf = tensor.HostBytes(host)
	if gap {
		v = v.Slice(0, int64(l.Gap), int64(l.Gap)+shape[0])
	}
	b.view = v
	m.blocks = append(m.blocks, b)
	return b, nil
}

func (b *block) setBits(dtype tensor.DType, at int64, bits uint32) {
	switch dtype.Size() {
	case 4:
		binary.NativeEndian.PutUint32(b.host[4*at:], bits)
	case 1:
		b.host[at] = uint8(bits)
	default:
		binary.NativeEndian.PutUint16(b.host[2*at:], uint16(bits))
	}
}

func (b *block) bitsAt(at int64) uint32 {
	switch b.view.DType.Size() {
	case 4:
		return binary.NativeEndian.Uint32(b.host[4*at:])
	case 1:
		return uint32(b.host[at])
	}
	return uint32(binary.NativeEndian.Uint16(b.host[2*at:]))
}

// index is the element of the buffer at a multi-index, by the definition of a
// View.
func (b *block) index(at ...int64) int64 {
	i := b.view.Offset
	for d, x := range at {
		i += x * b.view.Stride[d]
	}
	return i
}

// row copies features into the last dimension at a multi-index of the others.
func (b *block) row(x []float32, at ...int64) {
	i, last := b.index(at...), b.view.Stride[b.view.Rank-1]
	for d, v := range x {
		b.setBits(b.view.DType, i+int64(d)*last, encode(b.view.DType, float64(v)))
	}
}

// each calls f with the buffer index of every element of the view, row-major.
func (b *block) each(f func(at int64)) {
	v := &b.view
	shape := [4]int64{1, 1, 1, 1}
	copy(shape[:], v.Shape[:v.Rank])
	for i := range shape[0] {
		for j := range shape[1] {
			for k := range shape[2] {
				for l := range shape[3] {
					f(v.Offset + i*v.Stride[0] + j*v.Stride[1] + k*v.Stride[2] + l*v.Stride[3])
				}
			}
		}
	}
}

// fill sets the elements of the view, row-major.
func (b *block) fill(x []float32) {
	n := 0
	b.each(func(at int64) { b.setBits(b.view.DType, at, encode(b.view.DType, float64(x[n]))); n++ })
}

// words are the elements of the view, row-major.
func (b *block) words() words {
	w := words{b.view.DType, make([]uint32, 0, b.view.Len())}
	b.each(func(at int64) { w.bits = append(w.bits, b.bitsAt(at)) })
	return w
}

// hand gives the tensor to the backend as it now is.
func (m *memory) hand(b *block) (tensor.View, error) {
	b.before = bytes.Clone(b.host)
	v := b.view
	c, ok := m.backend.(Copier)
	if !ok {
		return v, nil
	}
	if b.device == nil {
		var err error
		if b.device, err = m.backend.Alloc(int64(len(b.host))); err != nil {
			return v, err
		}
	}
	v.Buf = b.device
	return v, c.CopyIn(b.device, b.host)
}

// take brings every tensor back and reports what was written outside the
// outputs.
func (m *memory) take() error {
	for _, b := range m.blocks {
		if b.device != nil {
			if err := m.backend.(Copier).CopyOut(b.host, b.device); err != nil {
				return err
			}
		}
		if b.before == nil || bytes.Equal(b.host, b.before) { // nil: never handed over
			continue
		}
		if !b.output {
			return fmt.Errorf("kerneltest: input %s was changed", b.name)
		}
		now := bytes.Clone(b.host)
		size := b.view.DType.Size()
		b.each(func(at int64) { copy(now[at*size:(at+1)*size], b.before[at*size:]) })
		if !bytes.Equal(now, b.before) {
			return fmt.Errorf("kerneltest: memory around %s was written", b.name)
		}
	}
	return nil
}

// untouched reports an output that changed at all.
func (m *memory) untouched() error {
	if err := m.take(); err != nil {
		return err
	}
	for _, b := range m.blocks {
		if b.before != nil && !bytes.Equal(b.host, b.before) {
			return fmt.Errorf("kerneltest: %s was written in spite of the error", b.name)
		}
	}
	return nil
}

func (m *memory) free() {
	for _, b := range m.blocks {
		b.free()
		if c, ok := b.device.(interface{ Close() error }); ok {
			c.Close()
		}
	}
	m.blocks = nil
}
