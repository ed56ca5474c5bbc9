//go:build cuda && cgo

package cuda

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	modules "github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/recurrence"
	"github.com/longctx/longctx/tensor"
)

// TestRecurrences: every technique gives on the device the bits that it gives on the
// CPU, with tensors of the host and of the device, and with states kept from call
// to call.
func TestRecurrences(t *testing.T) {
	b, c := open(t), cpu.New(cpu.Options{Workers: 1})
	defer c.Close()
	techniques := append(recurrence.All(), recurrence.DeltaNet{Normalize: true}, recurrence.GatedDeltaNet{Normalize: true}, recurrence.Linear{ELU: true, Normalize: true})
	for _, r := range techniques {
		t.Run(fmt.Sprintf("%s %+v", r.Info().Name, r), func(t *testing.T) {
			want := runRecurrence(t, c, r, nil)
			for name, on := range map[string]*Backend{"host": nil, "device": b} {
				if got := runRecurrence(t, b, r, on); !bytes.Equal(got, want) {
					t.Errorf("tensors of the %s: other bits than on the CPU", name)
				}
			}
		})
	}
}

// TestScanBackwardIsUnsupported: the error is one that a caller can tell.
func TestScanBackwardIsUnsupported(t *testing.T) {
	x := tensor.New(tensor.F32, 1, 1, 2)
	l, err := recurrence.New(open(t), recurrence.Linear{}, recurrence.Config{Heads: 1, KeyDim: 2})
	if err != nil {
		t.Fatal(err)
	}
	s := recurrence.Step{Query: x, Key: x, Value: x, Out: tensor.New(tensor.F32, 1, 1, 2), QueryStart: []int32{0, 1}}
	g := recurrence.Gradients{DOut: x, DQuery: tensor.New(tensor.F32, 1, 1, 2), DKey: tensor.New(tensor.F32, 1, 1, 2), DValue: tensor.New(tensor.F32, 1, 1, 2)}
	if err := l.Backward(&s, &g); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v, want an UnsupportedError", err)
	}
}

// TestScoreLoss: TinyBERT's loss of tensors of the device is that of the CPU.
func TestScoreLoss(t *testing.T) {
	b, c := open(t), cpu.New(cpu.Options{Workers: 1})
	defer c.Close()
	random := rand.New(rand.NewPCG(3, 4))
	sides := func() (s [2]kernel.ScoreSide) {
		for i, dim := range []int64{26, 64} {
			s[i] = kernel.ScoreSide{Query: tensor.New(tensor.F32, 70, 3, dim), Key: tensor.New(tensor.F32, 70, 3, dim)}
		}
		return s
	}
	host, device := sides(), sides()
	for i := range host {
		for _, v := range [][2]*tensor.View{{&host[i].Query, &device[i].Query}, {&host[i].Key, &device[i].Key}} {
			for k := range v[0].F32s() {
				v[0].F32s()[k] = float32(random.NormFloat64())
			}
			m, err := b.Alloc(4 * v[0].Len())
			if err != nil {
				t.Fatal(err)
			}
			if err := b.CopyIn(m, v[0].Bytes()); err != nil {
				t.Fatal(err)
			}
			v[1].Buf = m
		}
	}
	lens := []int{66, 4}
	want, err := modules.TinyBERT{}.Loss(c, &modules.ScorePair{Student: host[0], Teacher: host[1], QueryLens: lens})
	if err != nil {
		t.Fatal(err)
	}
	got, err := modules.TinyBERT{}.Loss(b, &modules.ScorePair{Student: device[0], Teacher: device[1], QueryLens: lens})
	if err != nil || got != want || want == 0 {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
}

// runRecurrence returns the outputs of two calls, the second from the states that
// the first left. The tensors are on a device if it is not nil.
func runRecurrence(t *testing.T, b kernel.Backend, r recurrence.Recurrence, device *Backend) (out []byte) {
	c := recurrence.Config{Heads: 2, KeyDim: 8, ValueDim: 5}
	l, err := recurrence.New(b, r, c)
	if err != nil {
		t.Fatal(err)
	}
	states, err := l.NewStates(3)
	if err != nil {
		t.Fatal(err)
	}
	slots := []int32{-1, 0, 0}
	for i := range slots[1:] {
		if slots[i+1], err = states.Alloc(); err != nil {
			t.Fatal(err)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for _, starts := range [][]int32{{0, 70, 140, 141}, {0, 3, 4, 80}} {
		tokens := int64(starts[3])
		made := func(fill func() float32, shape ...int64) tensor.View {
			v := tensor.New(tensor.F32, shape...)
			for i := range v.F32s() {
				v.F32s()[i] = fill()
			}
			if device != nil {
				m, err := device.Alloc(4 * v.Len())
				if err != nil {
					t.Fatal(err)
				}
				if err := device.CopyIn(m, v.Bytes()); err != nil {
					t.Fatal(err)
				}
				v.Buf = m
			}
			return v
		}
		normal := func() float32 { return float32(random.NormFloat64()) }
		positive := func() float32 { return random.Float32() }
		negative := func() float32 { return -random.Float32() }
		s := recurrence.Step{Query: made(normal, tokens, 2, 8), Value: made(normal, tokens, 2, 5), Out: made(positive, tokens, 2, 5), QueryStart: starts, States: states, Slots: slots}
		for _, x := range []struct {
			reads recurrence.Inputs
			to    *tensor.View
			fill  func() float32
			shape []int64
		}{
			{recurrence.ReadsKey, &s.Key, normal, []int64{tokens, 2, 8}},
			{recurrence.ReadsGate, &s.Gate, negative, []int64{tokens, 2}},
			{recurrence.ReadsChannelGate, &s.Gate, negative, []int64{tokens, 2, gateChannels(r)}},
			{recurrence.ReadsBeta, &s.Beta, positive, []int64{tokens, 2}},
			{recurrence.ReadsInput, &s.Input, normal, []int64{tokens, 2}},
			{recurrence.ReadsDelta, &s.Delta, positive, []int64{tokens, 2}},
			{recurrence.ReadsBonus, &s.Bonus, normal, []int64{2, 8}},
		} {
			if r.Info().Reads&x.reads != 0 {
				*x.to = made(x.fill, x.shape...)
			}
		}
		if err := l.Run(&s); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4*s.Out.Len())
		if device == nil {
			copy(got, s.Out.Bytes())
		} else if err := device.CopyOut(got, s.Out.Buf); err != nil {
			t.Fatal(err)
		}
		out = append(out, got...)
	}
	return out
}

func gateChannels(r recurrence.Recurrence) int64 {
	if g, ok := r.(recurrence.GSA); ok {
		return int64(g.Slots)
	}
	return 8
}
