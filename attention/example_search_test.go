package attention_test

import (
	"fmt"
	"log"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// A token that decodes over a cache of 600 keys: an index finds, of the keys that
// are neither first nor near, the two that its query scores highest with.
func Example_searchedDecode() {
	backend := cpu.New(cpu.Options{})
	defer backend.Close()
	cache, err := kvcache.New(backend, kvcache.Config{
		Layers: 1, Pages: 40, PageSize: 16, KVHeads: 1, HeadDim: 8, ValueDim: 1, DType: tensor.F32, KeyStorage: kernel.PostRoPE,
	})
	if err != nil {
		log.Fatal(err)
	}
	const n = 600
	key, query := tensor.New(tensor.F32, n, 1, 8), tensor.New(tensor.F32, 1, 1, 8)
	query.Set(5, 0, 0, 2)
	key.Set(8, 123, 0, 2)
	key.Set(8, 456, 0, 2)
	sequence := cache.NewSequence()
	slots, err := cache.Extend([]kvcache.ID{sequence}, []int{n}, nil)
	if err != nil {
		log.Fatal(err)
	}
	if err := cache.Append(0, slots, key, ramp(n, 1, 1)); err != nil {
		log.Fatal(err)
	}

	module := attention.RetrievalAttention{TopK: 2, Beam: 16, Degree: 4, Neighbours: 4, Sinks: 4, Window: 32}
	index, err := module.NewIndex(1, 8)
	if err != nil {
		log.Fatal(err)
	}
	if err := index.Append(key); err != nil {
		log.Fatal(err)
	}
	if err := index.Learn(backend, query); err != nil { // queries of prefill
		log.Fatal(err)
	}
	layer, err := module.New(backend, attention.Config{Heads: 1, KVHeads: 1, HeadDim: 8, ValueDim: 1, PageSize: 16})
	if err != nil {
		log.Fatal(err)
	}
	defer layer.Close()
	if err := layer.Plan(attention.Step{QueryLens: []int{1}, KV: cache.Sequences(sequence)}); err != nil {
		log.Fatal(err)
	}
	var found attention.Found
	if err := index.Search(query, n, &found); err != nil {
		log.Fatal(err)
	}
	args := kernel.Args{Query: query, Key: cache.KeyView(0), Value: cache.ValueView(0), Out: tensor.New(tensor.F32, 1, 1, 1)}
	if err := layer.Run(&args, &found); err != nil {
		log.Fatal(err)
	}
	fmt.Println("found", found.Indices)
	fmt.Printf("out %.2f\n", args.Out.At(0, 0, 0))

	// Output:
	// found [123 456]
	// out 289.50
}
