//go:build cuda && cgo

package driver

/*
#include "calls.h"

#cgo nocallback lc_graph_launch
*/
import "C"

import "fmt"

func launchText(grid, block Dim, shared int) string {
	return fmt.Sprintf("grid %d×%d×%d, block %d×%d×%d, %d bytes of dynamic shared memory",
		grid.X, grid.Y, grid.Z, block.X, block.Y, block.Z, shared)
}

// Graph is work that can be launched as one.
type Graph struct {
	dev  *Device
	exec handle
	// Nodes is the number of its launches, copies and sets.
	Nodes int
}

// Capture makes a graph of what record puts in the stream, and in streams that
// wait for it and that it waits for again. Nothing runs. When record fails, so
// does Capture, and the stream is as before.
func (s *Stream) Capture(record func() error) (*Graph, error) {
	d := s.dev
	if err := d.try("cuStreamBeginCapture", func() C.int { return C.lc_begin_capture(d.ctx, s.h) }); err != nil {
		return nil, err
	}
	recorded := record()
	var graph handle
	c := C.lc_end_capture(d.ctx, s.h, &graph)
	// A capture that was broken ends without a graph.
	destroy := func() {
		if graph != nil {
			C.lc_graph_destroy(d.ctx, graph)
		}
	}
	defer destroy()
	if recorded != nil {
		return nil, recorded
	}
	if c != 0 {
		return nil, d.failed("cuStreamEndCapture", Code(c), "", "")
	}
	g := &Graph{dev: d}
	var n C.size_t
	if err := d.try("cuGraphGetNodes", func() C.int { return C.lc_graph_nodes(d.ctx, graph, &n) }); err != nil {
		return nil, err
	}
	g.Nodes = int(n)
	if err := d.try("cuGraphInstantiate", func() C.int { return C.lc_graph_instantiate(d.ctx, graph, &g.exec) }); err != nil {
		return nil, err
	}
	return g, nil
}

// Upload puts in the stream what the first launch would do beside its work.
func (g *Graph) Upload(s *Stream) error {
	return g.dev.try("cuGraphUpload", func() C.int { return C.lc_graph_upload(g.dev.ctx, g.exec, s.h) })
}

// Launch puts the graph in the stream. It allocates nothing.
func (g *Graph) Launch(s *Stream) error {
	if err := g.dev.gone("cuGraphLaunch"); err != nil {
		return err
	}
	if c := C.lc_graph_launch(g.dev.ctx, g.exec, s.h); c != 0 {
		return g.dev.failed("cuGraphLaunch", Code(c), "", "")
	}
	return nil
}

// Close gives the graph back.
func (g *Graph) Close() error {
	if g.exec == nil {
		return nil
	}
	exec := g.exec
	g.exec = nil
	return g.dev.try("cuGraphExecDestroy", func() C.int { return C.lc_graph_exec_destroy(g.dev.ctx, exec) })
}
