package tier_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/kvcache/tier"
	"github.com/longctx/longctx/tensor"
)

// A page of a sequence is kept in memory and on disk, and comes back to another
// sequence that begins with the same tokens.
func Example() {
	ctx := context.Background()
	cache, err := kvcache.New(cpu.New(cpu.Options{}), kvcache.Config{
		Layers: 2, Pages: 8, PageSize: 4, KVHeads: 1, HeadDim: 8, ValueDim: 8, DType: tensor.F16})
	if err != nil {
		log.Fatal(err)
	}
	space, err := cache.NewSwapSpace(4, 0)
	if err != nil {
		log.Fatal(err)
	}
	defer space.Close()

	dir, err := os.MkdirTemp("", "pages")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	host, err1 := tier.NewHost(tier.Limits{Bytes: 1 << 30, Order: tier.LRU})
	disk, err2 := tier.OpenDisk(dir, tier.DiskOptions{})
	if err := errors.Join(err1, err2); err != nil {
		log.Fatal(err)
	}
	manager, err := tier.NewManager(tier.Options{}, tier.Level{Name: "host", Store: host}, tier.Level{Name: "disk", Store: disk, WriteThrough: true})
	if err != nil {
		log.Fatal(err)
	}
	defer manager.Close()

	first := cache.NewSequence()
	if _, err := cache.Extend([]kvcache.ID{first}, []int{6}, nil); err != nil { // and Append, in each layer
		log.Fatal(err)
	}
	key := page.Key{Namespace: "model/tenant", Hash: [32]byte{1}} // a hash of the tokens up to the page's end
	blob, err := space.Export(ctx, first, 0, key, nil)
	if err == nil {
		err = manager.Put(ctx, key, blob)
	}
	if err == nil {
		err = manager.Flush(ctx) // only to be sure that it is on disk
	}
	if err != nil {
		log.Fatal(err)
	}

	second := cache.NewSequence()
	blob, err = manager.Get(ctx, key, blob[:0])
	if err == nil {
		err = space.Import(ctx, second, blob)
	}
	if err != nil {
		log.Fatal(err)
	}
	n, _ := cache.Len(second)
	fmt.Println(n, "tokens;", disk.Usage().Pages, "page on disk")
	// Output: 4 tokens; 1 page on disk
}
