package prefix

import (
	"strings"
	"testing"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// TestCheckIntegrityFinds: each kind of damage is found and named.
func TestCheckIntegrityFinds(t *testing.T) {
	for _, tt := range []struct {
		want   string
		damage func(t *tree, n *node) // n has a child
	}{
		{"", func(*tree, *node) {}},
		{"is held 0 times", func(t *tree, n *node) { _ = t.cache.Release(n.pages...) }},
		{"known before: true", func(t *tree, n *node) { n.pages[0] = t.queue.nodes[0].pages[0] }},
		{"tokens", func(_ *tree, n *node) { n.tokens = n.tokens[1:] }},
		{"is not found by", func(_ *tree, n *node) { n.tokens[0]++; n.hash[0]++ }},
		{"children", func(_ *tree, n *node) { n.children++ }},
		{"locks below it", func(t *tree, _ *node) { t.queue.nodes[0].locks = 5 }},
		{"locked; noted", func(t *tree, _ *node) { t.stats.Locked++ }},
		{"noted", func(t *tree, _ *node) { t.stats.Pages++ }},
		{"is queued at", func(t *tree, _ *node) { t.queue.nodes[0].at = unqueued }},
		{"nodes are queued", func(t *tree, n *node) { t.queue.nodes = append(t.queue.nodes, n) }},
		{"was touched after its parent", func(_ *tree, n *node) { n.used = 0 }},
		{"comes before the one above it", func(t *tree, _ *node) { t.queue.nodes[0].used = 100 }},
		{"a scope has", func(t *tree, n *node) { t.roots[scope{salt: "x"}] = &node{} }},
	} {
		for _, look := range []lookup{&radix{}, &chain{hasher: SHA256{}, table: map[Hash]*node{}}} {
			c, err := kvcache.New(cpu.New(cpu.Options{Workers: 1}), kvcache.Config{Layers: 1, Pages: 16, PageSize: 2, KVHeads: 1, HeadDim: 1, ValueDim: 1, DType: tensor.F32})
			if err != nil {
				t.Fatal(err)
			}
			x, err := newTree(c, Options{}, look)
			if err != nil {
				t.Fatal(err)
			}
			for _, tokens := range [][]int32{{1, 1, 2, 2}, {1, 1, 3, 3}, {4, 4}} {
				id := c.NewSequence()
				if _, err := c.Extend([]kvcache.ID{id}, []int{len(tokens)}, nil); err != nil {
					t.Fatal(err)
				}
				if _, err := x.Insert(&Prompt{Tokens: tokens}, id); err != nil {
					t.Fatal(err)
				}
				if err := c.Free(id); err != nil {
					t.Fatal(err)
				}
			}
			tree := x.(*tree)
			inner := tree.queue.nodes[0].parent
			if _, err := x.Match(&Prompt{Tokens: []int32{1, 1}}); err != nil {
				t.Fatal(err)
			}
			tt.damage(tree, inner)
			err = x.CheckIntegrity()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%T: want %q, got %v", look, tt.want, err)
			}
		}
	}
}
