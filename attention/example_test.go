package attention_test

import (
	"fmt"
	"log"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/rope"
	"github.com/longctx/longctx/tensor"
)

// ramp is the tensor of consecutive numbers, so that outputs can be read.
func ramp(shape ...int64) tensor.View {
	v := tensor.New(tensor.F32, shape...)
	for i := range v.F32s()[:v.Len()] {
		v.F32s()[i] = float32(i)
	}
	return v
}

// Causal attention over one sequence of four tokens. All keys are zero, so each
// query takes the mean of the values it sees.
func Example() {
	backend := cpu.New(cpu.Options{}) // or backend.Default()
	defer backend.Close()
	layer, err := attention.New(backend, attention.Config{
		Heads: 2, KVHeads: 1, HeadDim: 8, ValueDim: 1,
		Mask: attention.Causal(), Rotary: rope.Default{Base: rope.Base{HeadDim: 8}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer layer.Close()

	// Plan once a step, Run once a layer.
	if err := layer.Plan(attention.Step{QueryLens: []int{4}}); err != nil {
		log.Fatal(err)
	}
	args := kernel.Args{
		Query: ramp(4, 2, 8), Key: tensor.New(tensor.F32, 4, 1, 8), Value: ramp(4, 1, 1),
		Out: tensor.New(tensor.F32, 4, 2, 1), LSE: tensor.New(tensor.F32, 4, 2),
	}
	if err := layer.Run(&args); err != nil {
		log.Fatal(err)
	}
	for t := range int64(4) {
		fmt.Printf("token %d: out %.1f %.1f, log-sum-exp %.4f\n", t, args.Out.At(t, 0, 0), args.Out.At(t, 1, 0), args.LSE.At(t, 0))
	}

	// Output:
	// token 0: out 0.0 0.0, log-sum-exp 0.0000
	// token 1: out 0.5 0.5, log-sum-exp 0.6931
	// token 2: out 1.0 1.0, log-sum-exp 1.0986
	// token 3: out 1.5 1.5, log-sum-exp 1.3863
}

// Prefill and decode of two sequences over a paged cache. The same Attention
// serves both; only the Step differs.
func Example_pagedDecode() {
	backend := cpu.New(cpu.Options{})
	defer backend.Close()
	cache, err := kvcache.New(backend, kvcache.Config{
		Layers: 1, Pages: 16, PageSize: 4, KVHeads: 1, HeadDim: 8, ValueDim: 1, DType: tensor.BF16,
	})
	if err != nil {
		log.Fatal(err)
	}
	layer, err := attention.New(backend, attention.Config{
		Heads: 2, KVHeads: 1, HeadDim: 8, ValueDim: 1, KVDType: tensor.BF16, PageSize: 4,
		Mask: attention.Window(6), Rotary: rope.Default{Base: rope.Base{HeadDim: 8}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer layer.Close()

	ids := []kvcache.ID{cache.NewSequence(), cache.NewSequence()}
	view := cache.Sequences(ids...)
	for step, counts := range [][]int{{5, 3}, {1, 1}, {1, 1}} {
		slots, err := cache.Extend(ids, counts, nil)
		if err != nil {
			log.Fatal(err)
		}
		n := int64(len(slots))
		// keys are stored as they are: the layer rotates them (PreRoPE)
		if err := cache.Append(0, slots, tensor.New(tensor.F32, n, 1, 8), ramp(n, 1, 1)); err != nil {
			log.Fatal(err)
		}
		if err := layer.Plan(attention.Step{QueryLens: counts, KV: view}); err != nil {
			log.Fatal(err)
		}
		args := kernel.Args{
			Query: ramp(n, 2, 8), Key: cache.KeyView(0), Value: cache.ValueView(0),
			Out: tensor.New(tensor.F32, n, 2, 1),
		}
		if err := layer.Run(&args); err != nil {
			log.Fatal(err)
		}
		last := int64(counts[0] - 1)
		fmt.Printf("step %d: last tokens of the two sequences %.2f, %.2f\n", step, args.Out.At(last, 0, 0), args.Out.At(n-1, 0, 0))
	}

	// Output:
	// step 0: last tokens of the two sequences 2.00, 6.00
	// step 1: last tokens of the two sequences 1.67, 4.75
	// step 2: last tokens of the two sequences 1.67, 4.00
}

// A model trained on 512 tokens reads 2000: ReRoPE with log-n scaling, and YaRN,
// which changes frequencies and leaves positions alone. Which is in use is a
// matter of the Config; the cache holds unrotated keys and serves either.
func Example_longContext() {
	const trained, length = 512, 2000
	backend := cpu.New(cpu.Options{})
	defer backend.Close()
	base := rope.Base{HeadDim: 16}
	rerope := attention.ReRoPE{Window: trained / 2}

	for _, recipe := range []struct {
		name     string
		position attention.Position
		rotary   attention.Rotary
		score    attention.Score
	}{
		{"ReRoPE and log-n", rerope, rope.Default{Base: base}, attention.Score{LogN: trained}},
		{"YaRN", attention.Absolute{}, rope.YaRN{Base: base, Factor: 4, OriginalLength: trained}, attention.Score{}},
	} {
		layer, err := attention.New(backend, attention.Config{
			Heads: 1, KVHeads: 1, HeadDim: 16, ValueDim: 1, Mask: attention.Causal(),
			Position: recipe.position, Rotary: recipe.rotary, Score: recipe.score,
		})
		if err != nil {
			log.Fatal(err)
		}
		// one decode step, whose query sees all keys
		if err := layer.Plan(attention.Step{QueryLens: []int{1}, KeyLens: []int{length}}); err != nil {
			log.Fatal(err)
		}
		args := kernel.Args{
			Query: ramp(1, 1, 16), Key: tensor.New(tensor.F32, length, 1, 16), Value: ramp(length, 1, 1),
			Out: tensor.New(tensor.F32, 1, 1, 1),
		}
		if err := layer.Run(&args); err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: %d terms, %v keys, mean of all values %.1f\n", recipe.name, len(layer.Batch().Terms), layer.KeyStorage(), args.Out.At(0, 0, 0))
		layer.Close()
	}
	fmt.Println("ReRoPE has no limit:", rerope.LongestLength(trained) == attention.NoLimit)
	fmt.Println("Self-Extend reaches", attention.SelfExtend{Group: 8, Window: 128}.LongestLength(trained))

	// Output:
	// ReRoPE and log-n: 2 terms, pre-RoPE keys, mean of all values 999.5
	// YaRN: 1 terms, pre-RoPE keys, mean of all values 999.5
	// ReRoPE has no limit: true
	// Self-Extend reaches 3200
}

// Halving is a position module of one's own: distances of 8 and more are
// halved. A module is data; nothing has to be registered.
type Halving struct{}

func (Halving) Name() string { return "halving" }

func (Halving) Terms(int) ([]attention.Term, error) {
	near, far := kernel.Everywhere, kernel.Everywhere
	near.Diff.Hi, far.Diff.Lo = 8, 8
	half := attention.Identity
	half.Slope = 0.5
	return []attention.Term{
		{Region: near, PosQ: attention.Identity, PosK: attention.Identity},
		{Region: far, PosQ: half.Shift(4), PosK: half}, // distance 4 + (i−j)/2
	}, nil
}

// A mask and a position module of one's own. The mask is a literal: keys up to
// the query's, in its own block of four and the one before.
func Example_customModule() {
	backend := cpu.New(cpu.Options{})
	defer backend.Close()
	blocks := kernel.Region{Diff: kernel.Range{Lo: 0, Hi: kernel.MaxBound}, Key: kernel.All}
	blocks.Chunk[0] = kernel.ChunkRange{Size: 4, Range: kernel.Range{Lo: 0, Hi: 2}}
	layer, err := attention.New(backend, attention.Config{
		Heads: 1, KVHeads: 1, HeadDim: 4, ValueDim: 12,
		Mask:     attention.Mask{Regions: []kernel.Region{blocks}},
		Position: Halving{}, Rotary: rope.Default{Base: rope.Base{HeadDim: 4}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer layer.Close()
	if err := layer.Plan(attention.Step{QueryLens: []int{12}}); err != nil {
		log.Fatal(err)
	}
	identity := tensor.New(tensor.F32, 12, 1, 12)
	for j := range int64(12) {
		identity.Set(1, j, 0, j)
	}
	// with values that are unit vectors, Out is the weights themselves
	args := kernel.Args{
		Query: tensor.New(tensor.F32, 12, 1, 4), Key: ramp(12, 1, 4), Value: identity, Out: tensor.New(tensor.F32, 12, 1, 12),
	}
	if err := layer.Run(&args); err != nil {
		log.Fatal(err)
	}
	for _, i := range []int64{2, 5, 11} {
		fmt.Printf("query %2d sees", i)
		for j := range int64(12) {
			if args.Out.At(i, 0, j) > 0 {
				fmt.Print(" ", j)
			}
		}
		fmt.Println()
	}

	// Output:
	// query  2 sees 0 1 2
	// query  5 sees 0 1 2 3 4 5
	// query 11 sees 4 5 6 7 8 9 10 11
}

// ALiBi: no rotation, and a slope for each head that is handed to Run in
// kernel.ScoreArgs.Slopes, with Config.Score.Slopes set.
func ExampleALiBiSlopes() {
	fmt.Println(attention.ALiBiSlopes(4))
	fmt.Println(attention.ALiBiSlopes(6))

	// Output:
	// [0.25 0.0625 0.015625 0.00390625]
	// [0.25 0.0625 0.015625 0.00390625 0.5 0.125]
}
