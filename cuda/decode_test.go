//go:build cuda && cgo

package cuda

import (
	"fmt"
	"strings"
	"testing"

	modules "github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kernel/kerneltest"
	"github.com/longctx/longctx/tensor"
)

// watched is a Backend whose kernels note what Run launches.
type watched struct {
	*Backend
	launched []string
}

type watchedAttention struct {
	*attention
	to *watched
}

func (w *watched) Attention(s kernel.Spec) (kernel.Attention, error) {
	a, err := w.Backend.Attention(s)
	if err != nil {
		return nil, err
	}
	return &watchedAttention{a.(*attention), w}, nil
}

func (a *watchedAttention) Run(args *kernel.Args) error {
	if err := a.attention.Run(args); err != nil {
		return err
	}
	name := a.shape.name
	if a.decodes() {
		name = a.decode
	}
	a.to.launched = append(a.to.launched, name)
	return nil
}

// decodeCase is a decode and the kernel that it must take.
type decodeCase struct {
	name, kernel string
	problem      kerneltest.Problem
}

func quantizedDecode(codec kernel.Codec, dim, valueDim, page, group int, kv tensor.DType) modules.Config {
	return modules.Config{Heads: 4, KVHeads: 1, HeadDim: dim, ValueDim: valueDim, DType: tensor.F32, KVDType: kv, PageSize: page, Mask: modules.Causal(),
		Coding: kernel.Coding{Key: kernel.Quantizer{Codec: codec}, Value: kernel.Quantizer{Codec: codec, Group: group}}}
}

func decodeCases() []decodeCase {
	var all []decodeCase
	add := func(kernel string, c modules.Config, coded int, step modules.Step) {
		p := kerneltest.Problem{Config: c, Step: step, Drawn: true, Scaled: c.KVDType == tensor.F8E4M3}
		switch coded { // the type has no name here
		case 1:
			p.Coded = 1 // all pages
		case 2:
			p.Coded = 2 // every second one
		}
		name := fmt.Sprintf("%v/%d-%d/page=%d/mix=%d/queries=%v", c.Coding, c.HeadDim, c.ValueDim, c.PageSize, coded, step.QueryLens)
		all = append(all, decodeCase{name, kernel, p})
	}
	one := modules.Step{QueryLens: []int{1, 1}, KeyLens: []int{700, 65}}
	for _, codec := range []kernel.Codec{kernel.Int8, kernel.Int4} {
		for i, page := range []int{8, 16, 17, 64, 100, 128} {
			kv := []tensor.DType{tensor.F32, tensor.F16, tensor.BF16, tensor.F8E4M3, tensor.F8E5M2}[i%5]
			for mix := range 3 {
				add("decode_coded_4_128", quantizedDecode(codec, 64, 96, page, 32, kv), mix, one)
			}
		}
		for _, group := range []int{4, 8, 16, 32, 64, 128} {
			add("decode_coded_4_128", quantizedDecode(codec, 128, 128, 32, group, tensor.F16), 2, one)
		}
		two := modules.Step{QueryLens: []int{2}, KeyLens: []int{600}}
		add("decode_coded_8_128", quantizedDecode(codec, 128, 128, 64, 32, tensor.F16), 2, two)
		add("decode_coded_8_256", quantizedDecode(codec, 192, 128, 64, 32, tensor.F16), 2, two)
		add("decode_coded_4_256", quantizedDecode(codec, 64, 256, 16, 32, tensor.BF16), 1, one)
		window := quantizedDecode(codec, 64, 64, 16, 32, tensor.F16)
		window.Mask = modules.Window(200)
		window.Score = modules.Score{SoftCap: 5, SinkLogit: true}
		add("decode_coded_4_128", window, 1, one)
		add("attention_16_128", quantizedDecode(codec, 64, 64, 16, 2, tensor.F16), 1, one) // groups of two features
		add("attention_16_128", quantizedDecode(codec, 64, 64, 4, 32, tensor.F16), 1, one) // short pages
	}
	return all
}

// TestDecodeKernels: few rows of each kind that a decode kernel serves take it,
// and have the bits of the rules.
func TestDecodeKernels(t *testing.T) {
	b := open(t)
	for _, c := range decodeCases() {
		t.Run(c.name, func(t *testing.T) {
			w := &watched{Backend: b}
			r := kerneltest.Check(w, kerneltest.Case{Op: "attention", Name: c.name, Problem: &c.problem}, kernel.Exact)
			if !r.OK() {
				t.Error(r.String())
			}
			for _, name := range w.launched {
				if name != c.kernel || !strings.Contains(r.Kernel, c.kernel) {
					t.Errorf("took %s, named %s, want %s", name, r.Kernel, c.kernel)
				}
			}
			if len(w.launched) == 0 {
				t.Error("nothing was launched")
			}
		})
	}
}
