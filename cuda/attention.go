//go:build cuda && cgo

package cuda

// #include "kernels/params.h"
import "C"

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"unsafe"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// shape is a variant of the attention kernel: attention_<rows>_<dim>.
type shape struct {
	name            string
	rows, keys, dim int // of a block, loaded at once, features of keys and values at most
}

// shapes are the variants, the one for many rows first.
var shapes = [...]shape{
	{"attention_64_64", 64, 64, 64},
	{"attention_64_128", 64, 64, 128},
	{"attention_32_256", 32, 64, 256},
	{"attention_16_512", 16, 32, 512},
	{"attention_16_576", 16, 32, 576},
}

// fewRows serves blocks of up to 16 rows.
var fewRows = shape{"attention_16_128", 16, 64, 128}

const blockThreads = 128

// choose returns the variant for sequences of up to so many rows a KV head.
func choose(s *kernel.Spec, rows int) shape {
	if f := fewRows; rows <= f.rows && max(s.HeadDim, s.ValueDim) <= f.dim {
		return f
	}
	for _, x := range shapes {
		if max(s.HeadDim, s.ValueDim) <= x.dim {
			return x
		}
	}
	panic("cuda: internal error: no kernel for a Spec that was taken")
}

// decodeThreads are those of a block of a decode kernel.
const decodeThreads = 32

// decoding returns the kernel decode_<rows>_<dim> for few rows a KV head that
// reads keys as they are stored, or decode_coded_<rows>_<dim> that reads coded
// pages too, its shared memory, and whether it reads codes; "" where more is asked for than they can.
func decoding(s *kernel.Spec, b *kernel.Batch, rows int) (name string, shared int, codes bool) {
	if len(b.Terms) > 1 || s.RotaryDim > 0 && s.KeyStorage == kernel.PreRoPE || max(s.HeadDim, s.ValueDim) > 256 || rows > 8 {
		return "", 0, false
	}
	most, dim := 4, 128
	if rows > 4 {
		most = 8
	}
	if max(s.HeadDim, s.ValueDim) > 128 {
		dim = 256
	}
	r, d, bytes := C.int32_t(most), C.int32_t(dim), C.int32_t(s.KVDType.Size())
	if !slices.Contains(b.Pages.Coded, true) {
		return fmt.Sprintf("decode_%d_%d", most, dim), int(C.lc_decode_shared(r, d, bytes)), false
	}
	key, value := s.Coding.Key, s.Coding.Value
	const leastPage = 8 // scales of keys of more pages a tile would leave room for a block or two
	if key.Codec == kernel.NoCodec || value.Codec == kernel.NoCodec || value.Group%4 != 0 || s.PageSize < leastPage {
		return "", 0, false
	}
	return fmt.Sprintf("decode_coded_%d_%d", most, dim), int(C.lc_decode_coded_shared(r, d, bytes, C.int32_t(s.PageSize), C.int32_t(s.ValueDim/value.Group))), true
}

// decodes reports whether the kernel of decoding can load what Run is given: rows
// in whole units of 16 bytes.
func (a *attention) decodes() bool {
	p := a.params
	if a.decode == "" || p.key.vector != 16 || p.value.vector != 16 {
		return false
	}
	k, v := &p.coded_key, &p.coded_value
	return !a.decodesCodes || k.codes.vector == 16 && k.scale.vector == 16 && k.zero.vector == 16 && v.codes.vector == 16 &&
		v.scale.dim == 1 && v.zero.dim == 1
}

// grids are the blocks of the launches of a Run.
type grids struct{ attention, decode, merge int }

// layout is what a captured Run depends on: a Plan that leaves it as it is can
// follow without capturing anew.
type layout struct {
	name, decode string
	params       C.lc_attention_params
	room         grids
}

// attention is the kernel for a Spec.
type attention struct {
	b            *Backend
	spec         kernel.Spec
	batch        *kernel.Batch // of the last Plan
	shape        shape
	params       *C.lc_attention_params // by itself: cgo wants no Go pointers beside it
	grid         grids
	shared       int
	decode       string // kernel that may take the place of shape's
	decodeShared int
	decodesCodes bool
	plan         plan
	tables       buffer
	space        buffer
	rotary       rotary
	gradients    gradients
	layout       layout // of the last Plan
	plans        int    // so far
	busy         atomic.Bool
	closed       bool
}

// Attention returns the kernel for s, or a *kernel.UnsupportedError. The Fast
// policy computes as Exact does.
func (b *Backend) Attention(s kernel.Spec) (kernel.Attention, error) {
	reasons := append(s.Problems(), lacksCoding(&s.Coding)...)
	if len(reasons) == 0 {
		for _, x := range [...]shape{choose(&s, math.MaxInt), choose(&s, 1)} {
			if need, have := x.sharedBytes(&s), b.dev.sharedBytes(); need > have {
				reasons = append(reasons, fmt.Sprintf("%s with %d terms needs %d bytes of shared memory, the device has %d", x.name, s.Terms, need, have))
			}
		}
	}
	if len(reasons) > 0 {
		return nil, &kernel.UnsupportedError{Backend: "cuda", Reasons: reasons}
	}
	return &attention{b: b, spec: s, shape: choose(&s, math.MaxInt), params: new(C.lc_attention_params), tables: buffer{dev: b.dev}, space: buffer{dev: b.dev},
		rotary:    rotary{cos: buffer{dev: b.dev}, sin: buffer{dev: b.dev}},
		gradients: gradients{params: new(C.lc_gradient_params), space: buffer{dev: b.dev}}}, nil
}

func (x *shape) sharedBytes(s *kernel.Spec) int {
	return int(C.lc_attention_shared(C.int32_t(x.rows), C.int32_t(x.keys), C.int32_t(x.dim), C.int32_t(s.Terms))) + x.rawBytes(s)
}

// rawBytes is the shared memory for rows of 16 or 8 bits as they come. F32
// rows need none.
func (x *shape) rawBytes(s *kernel.Spec) int {
	if s.KVDType == tensor.F32 {
		return 0
	}
	return x.keys * x.dim * int(s.KVDType.Size())
}

// Name tells the kernel of the last Plan, policy, types and dimensions.
func (a *attention) Name() string {
	s, name := &a.spec, a.shape.name
	if a.decode != "" {
		name = a.decode
	}
	return fmt.Sprintf("cuda/%s/exact/%v-%v/d%d-%d", name, s.DType, s.KVDType, s.HeadDim, s.ValueDim)
}

// begin takes the kernel for one call.
func (a *attention) begin() error {
	if !a.busy.CompareAndSwap(false, true) {
		return kernel.ErrBusy
	}
	if a.closed {
		a.busy.Store(false)
		return kernel.ErrClosed
	}
	return nil
}

// Plan lowers a Batch to tables on the device. The Batch is kept, not copied:
// it must not change until the next Plan.
func (a *attention) Plan(b *kernel.Batch) error {
	if err := a.begin(); err != nil {
		return err
	}
	defer a.busy.Store(false)
	a.batch, a.plans = nil, a.plans+1
	if err := b.Validate(&a.spec); err != nil {
		return err
	}
	rows := 0
	for s := range b.SeqLens {
		rows = max(rows, b.QueryLen(s)*a.spec.Group())
	}
	a.shape = choose(&a.spec, rows)
	a.shared = a.shape.sharedBytes(&a.spec)
	slots := a.b.dev.multiprocessors() * max(1, min(2, a.b.dev.sharedBytes()/a.shared))
	a.decode, a.decodeShared, a.decodesCodes = decoding(&a.spec, b, rows)
	if a.decodeShared > a.b.dev.sharedBytes() {
		a.decode = ""
	}
	t := &a.plan
	t.lower(&a.spec, b, &a.shape, slots, a.decode != "")
	a.grid = grids{min(slots, len(t.items)), len(t.items), len(t.merges) * a.shape.rows}
	room := grids{min(slots, t.roomFor(tableItems, len(t.items))), t.roomFor(tableItems, len(t.items)), t.roomFor(tableMerges, len(t.merges)) * a.shape.rows}
	if err := a.upload(room.attention); err != nil {
		return err
	}
	a.layout = layout{a.shape.name, a.decode, *a.params, room}
	a.batch = b
	return nil
}

// upload copies the tables of the plan to the device and makes its workspace,
// for a grid of so many blocks.
func (a *attention) upload(grid int) error {
	t := &a.plan
	if a.spec.RotaryDim > 0 {
		if err := a.rotary.upload(a.spec.RotaryDim, t.batch); err != nil {
			return err
		}
	}
	if err := a.tables.grow(int64(len(t.bytes))); err != nil {
		return err
	}
	state := 4 * int64(C.lc_total_floats(C.int32_t(a.shape.rows), C.int32_t(a.shape.dim)))
	part := int64(a.shape.rows) * int64(a.shape.dim+2) * 4
	totals := int64(grid) * state
	for t.roomParts < t.parts {
		t.roomParts = max(64, 2*t.roomParts)
	}
	if err := a.space.grow(totals + int64(t.roomParts)*part); err != nil {
		return err
	}
	if len(t.bytes) > 0 {
		if err := a.b.dev.copyIn(a.tables.addr, t.bytes); err != nil {
			return err
		}
	}
	p := a.params
	*p = C.lc_attention_params{}
	t.fill(p, a.tables.addr)
	p.cos, p.sin = C.uint64_t(a.rotary.cos.addr), C.uint64_t(a.rotary.sin.addr)
	p.totals, p.parts = C.uint64_t(a.space.addr), C.uint64_t(a.space.addr+uint64(totals))
	p.raw_bytes = C.int32_t(a.shape.rawBytes(&a.spec))
	p.part_rows, p.part_dim = C.int32_t(a.shape.rows), C.int32_t(a.shape.dim)
	setSpec(p, &a.spec)
	return a.planGradients()
}

// setSpec sets what follows from the Spec alone.
func setSpec(p *C.lc_attention_params, s *kernel.Spec) {
	p.heads, p.kv_heads, p.group = C.int32_t(s.Heads), C.int32_t(s.KVHeads), C.int32_t(s.Group())
	p.head_dim, p.value_dim = C.int32_t(s.HeadDim), C.int32_t(s.ValueDim)
	p.page_size = C.int32_t(s.PageSize)
	p.rotary_dim = C.int32_t(s.RotaryDim)
	if s.RotaryLayout == kernel.Interleaved {
		p.interleaved = 1
	}
	if s.RotaryDim > 0 && s.KeyStorage == kernel.PreRoPE {
		p.turns_keys = 1
	}
	p.masks, p.scores = C.int32_t(s.Masks), C.int32_t(s.Scores)
	p.inv_cap, p.cap = C.float(1/(s.SoftCap*math.Log2E)), C.float(s.SoftCap*math.Log2E)
	p.rel_bias_start = C.int64_t(s.RelBiasStart)
	p.coded_key.codec, p.coded_value.codec = C.int32_t(s.Coding.Key.Codec), C.int32_t(s.Coding.Value.Codec)
	p.coded_value.group = C.int32_t(s.Coding.Value.Group)
}

// Run computes all items. It allocates nothing and does not wait for the
// device.
func (a *attention) Run(args *kernel.Args) error {
	if err := a.begin(); err != nil {
		return err
	}
	defer a.busy.Store(false)
	if a.batch == nil {
		return kernel.ErrNoPlan
	}
	if err := args.Validate(&a.spec, a.batch); err != nil {
		return err
	}
	if err := a.b.onDevice(&args.Query, &args.Key, &args.Value, &args.Out, &args.LSE, &args.KeyScale, &args.ValueScale,
		&args.CodedKey.Codes, &args.CodedKey.Scale, &args.CodedKey.Zero, &args.CodedValue.Codes, &args.CodedValue.Scale, &args.CodedValue.Zero,
		&args.Slopes, &args.RelBias, &args.PrefixBias, &args.SinkLogit); err != nil {
		return err
	}
	p := a.params
	setTensor(&p.query, &args.Query)
	setTensor(&p.key, &args.Key)
	setTensor(&p.value, &args.Value)
	setTensor(&p.out, &args.Out)
	setCoded(&p.coded_key, &args.CodedKey)
	setCoded(&p.coded_value, &args.CodedValue)
	setScalars(&p.lse, &args.LSE)
	setScalars(&p.key_scale, &args.KeyScale)
	setScalars(&p.value_scale, &args.ValueScale)
	setScores(p, &args.ScoreArgs)
	n := a.grid
	if r := a.b.recording.Load(); r != nil { // for later Plans too: blocks without work end at once
		n = a.layout.room
		r.uses = append(r.uses, use{a: a, layout: a.layout})
	}
	name, grid, threads, shared := a.shape.name, n.attention, blockThreads, a.shared
	if a.decodes() {
		name, grid, threads, shared = a.decode, n.decode, decodeThreads, a.decodeShared
	}
	if grid > 0 {
		if err := a.b.dev.launch(name, grid, threads, shared, unsafe.Pointer(p)); err != nil {
			return a.explain(err)
		}
	}
	if n.merge > 0 {
		if err := a.b.dev.launch("attention_merge", n.merge, blockThreads, int(C.lc_merge_shared()), unsafe.Pointer(p)); err != nil {
			return a.explain(err)
		}
	}
	return nil
}

// explain adds what was being computed to an error of the driver.
func (a *attention) explain(err error) error { return fmt.Errorf("cuda: %s: %w", a.Name(), err) }

// Close frees the plan. It may be called twice.
func (a *attention) Close() error {
	if !a.busy.CompareAndSwap(false, true) {
		return kernel.ErrBusy
	}
	defer a.busy.Store(false)
	a.closed, a.batch = true, nil
	return errors.Join(a.tables.Close(), a.space.Close(), a.rotary.cos.Close(), a.rotary.sin.Close(), a.gradients.space.Close())
}

func address(v *tensor.View) uint64 {
	m, ok := v.Buf.(*buffer)
	if !ok {
		return 0
	}
	return m.addr + uint64(v.Offset*v.DType.Size())
}

// setTensor lowers a view of [rows, heads, features] or [pages, slots, heads,
// features], or of [pages, heads, features] where all slots share a row.
func setTensor(t *C.lc_tensor, v *tensor.View) {
	*t = C.lc_tensor{}
	if v.IsZero() {
		return
	}
	t.data, t.dtype, t.vector = C.uint64_t(address(v)), C.int32_t(v.DType), 1
	k := 1
	t.row = C.int64_t(v.Stride[0])
	if v.Rank == 4 {
		t.slot, k = C.int64_t(v.Stride[1]), 2
	}
	t.head, t.dim = C.int64_t(v.Stride[k]), C.int64_t(v.Stride[k+1])
	even := address(v)%uint64(4*v.DType.Size()) == 0 && v.Shape[k+1]%4 == 0 && v.Stride[k+1] == 1
	for d := range k + 1 {
		even = even && v.Stride[d]%4 == 0
	}
	units := address(v)%16 == 0 && v.Shape[k+1]*v.DType.Size()%16 == 0 && v.Stride[k+1] == 1
	for d := range k + 1 {
		units = units && v.Stride[d]*v.DType.Size()%16 == 0
	}
	if units {
		t.vector = 16
	} else if even {
		t.vector = 4
	}
}

func setScores(p *C.lc_attention_params, x *kernel.ScoreArgs) {
	setScalars(&p.slopes, &x.Slopes)
	setScalars(&p.rel_bias, &x.RelBias)
	setScalars(&p.prefix_bias, &x.PrefixBias)
	setScalars(&p.sink_logit, &x.SinkLogit)
}

// lacksCoding says what there is no kernel for.
func lacksCoding(c *kernel.Coding) []string {
	if c.IsZero() {
		return nil
	}
	key, value := kernel.Quantizer{Codec: c.Key.Codec}, kernel.Quantizer{Codec: c.Value.Codec, Group: c.Value.Group}
	if c.Key == key && c.Value == value && max(key.Codec, value.Codec) <= kernel.Int4 && value.Group > 0 {
		return nil
	}
	return []string{fmt.Sprintf("Coding %v (have int8 and int4, keys per channel and values in groups)", c)}
}

func setCoded(c *C.lc_coded, p *kernel.CodedPages) {
	setTensor(&c.codes, &p.Codes)
	setTensor(&c.scale, &p.Scale)
	setTensor(&c.zero, &p.Zero)
}

func setScalars(s *C.lc_scalars, v *tensor.View) {
	*s = C.lc_scalars{}
	if v.IsZero() {
		return
	}
	s.data, s.row, s.col, s.cols = C.uint64_t(address(v)), C.int64_t(v.Stride[0]), C.int64_t(v.Stride[1]), C.int64_t(v.Shape[1])
}
