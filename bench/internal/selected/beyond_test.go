package selected

import (
	"math"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/bench/internal/model"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/rope"
)

// logits after the last token, of a model that attends as told.
func logits(t *testing.T, m *model.Model, b kernel.Backend, how model.Attending, tokens []int32) []float32 {
	t.Helper()
	how.Mask = attention.Causal()
	p, err := model.NewPrefill(m, b, kernel.Exact, how)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	out, err := p.Run([][]int32{tokens}, 1)
	if err != nil {
		t.Fatal(err)
	}
	return append([]float32(nil), out...)
}

func apartOf(a, b []float32) (most float64) {
	for i, x := range a {
		most = max(most, math.Abs(float64(x-b[i])))
	}
	return most
}

// Where all keys fit, ranks are positions, and InfLLM is ReRoPE; where they do not, less is
// seen.
func TestBeyondOfAllKeys(t *testing.T) {
	m, b, yarn, tokens, _ := scene(t)
	rotary := rope.Default{Base: yarn.Base}
	rotation, err := rotary.Rotation(len(tokens))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range Beyond() {
		for _, c := range []struct {
			context, tokens int
			whole           bool
		}{{128, 24, true}, {256, 205, s.Name != "reattention"}, {128, 205, false}} {
			r := &Runner{Config: m.Config, Rotation: rotation, Page: 8, Share: 1, Judged: 1, Selector: &s}
			r.Config.Context = c.context
			if s.Name == "longheads" && c.context == 256 {
				r.Config.Context = 512 // two heads share
			}
			want := model.Attending{Rotary: rotary}
			if s.Name == "infllm" {
				want.Position = attention.ReRoPE{Window: r.Config.Context/2 - 8}
			}
			got := logits(t, m, b, model.Attending{Own: r.Own}, tokens[:c.tokens])
			apart := apartOf(got, logits(t, m, b, want, tokens[:c.tokens]))
			if seen := r.Judgement().Seen; (apart < 1e-3) != c.whole || (seen == 1) != c.whole || seen > 1 {
				t.Errorf("%s of %d tokens for %d: %g from all keys, %v seen", s.Name, c.tokens, c.context, apart, seen)
			}
		}
	}
}
