// What needs no agent: statuses, errors, results, views, ids, and handles that were moved from.
#include "check.hpp"

#include <array>
#include <memory>
#include <thread>
#include <unordered_set>
#if __cplusplus >= 202002L
#include <span>
#endif

using kvlink::ErrorClass;
using kvlink::Status;

static void a_status_tells_its_class()
{
    CHECK(kvlink::error_class(Status::duplicate) == ErrorClass::call);
    CHECK(kvlink::error_class(Status::no_memory) == ErrorClass::host);
    CHECK(kvlink::error_class(Status::address) == ErrorClass::host);
    CHECK(kvlink::error_class(Status::unreachable) == ErrorClass::peer);
    CHECK(kvlink::error_class(Status::quarantined) == ErrorClass::transfer);
    CHECK(kvlink::error_class(Status::backend) == ErrorClass::backend);
    CHECK(kvlink::error_class(Status::poisoned) == ErrorClass::kvlink);
    CHECK(kvlink::error_class(static_cast<Status>(-99)) == ErrorClass::call);
    CHECK(kvlink::error_class(static_cast<Status>(-299)) == ErrorClass::peer);
    CHECK(std::string(kvlink::status_text(Status::lease_expired)) == "lease expired");
    CHECK(std::string(kvlink::version()).find('.') != std::string::npos);
}

static void errors_have_the_whole_message_of_their_own_thread()
{
    // Groups without blocks: longer than any buffer to begin with.
    auto wrong = description();
    wrong.groups.resize(9);
    const auto result = kvlink::Layout::create(wrong);
    FAILS(result, Status::invalid_layout, "group 1: ");
    FAILS(result, Status::invalid_layout, "group 8: ");
    CHECK(result.error().message().size() > 512 && result.error().error_class() == ErrorClass::call);

    // Another thread's failure, and a later one of our own, leave it alone.
    const std::string before = result.error().message();
    std::thread([] { FAILS(kvlink::Layout::from_json("{"), Status::invalid_layout, "JSON"); }).join();
    FAILS(kvlink::ticket_info("no ticket"), Status::invalid_ticket, "ticket");
    CHECK(result.error().message() == before);
}

static void a_result_has_a_value_or_an_error()
{
    kvlink::Result<std::string> good(std::string("value"));
    CHECK(good && good.ok() && *good == "value" && good->size() == 5);
    *good += "s";
    CHECK(*std::move(good) == "values");
    kvlink::Result<std::unique_ptr<int>> only_moved(std::make_unique<int>(7));
    const std::unique_ptr<int> moved = *std::move(only_moved);
    CHECK(*moved == 7);

    const kvlink::Result<int> bad(kvlink::Error(Status::limit, "too much"));
    CHECK(!bad && bad.error().status() == Status::limit);
    const auto passed_on = [&]() -> kvlink::Result<void> { return bad.error(); }();
    CHECK(!passed_on && passed_on.error().message() == "too much");
    CHECK(kvlink::Result<void>().ok());
}

static void values_throw_where_exceptions_are_wanted()
{
#ifdef KVLINK_EXCEPTIONS
    const kvlink::Result<int> bad(kvlink::Error(Status::limit, "too much"));
    int caught = 0;
    try {
        (void)bad.value();
    } catch (const kvlink::Exception& e) {
        caught += e.error().status() == Status::limit && std::string(e.what()) == "too much";
    }
    try {
        kvlink::Agent().register_region(0, nullptr, 0).value();
    } catch (const std::runtime_error& e) {
        caught += std::string(e.what()).find("agent is NULL") != std::string::npos;
    }
    try {
        const kvlink::Layout layout = kvlink::Layout::from_json("{").value();
    } catch (const kvlink::Exception& e) {
        caught += e.error().status() == Status::invalid_layout;
    }
    CHECK(caught == 3);
    kvlink::Result<std::string> good(std::string("value"));
    good.value() += "s";
    CHECK(std::as_const(good).value() == "values" && std::move(good).value() == "values");
    kvlink::Result<void>().value();
#endif
}

static void views_are_made_of_whatever_lies_in_a_row()
{
    std::vector<std::uint32_t> vector{1, 2, 3};
    const std::array<std::uint32_t, 2> array{4, 5};
    const std::uint32_t plain[] = {6};
    const auto list = {7u, 8u};
    const kvlink::Blocks lists[] = {vector, array, plain, {list, 9}};
    CHECK(lists[0].ids == vector.data() && lists[0].count == 3 && lists[0].first == 0);
    CHECK(lists[1].ids == array.data() && lists[1].count == 2);
    CHECK(lists[2].ids == plain && lists[2].count == 1);
    CHECK(lists[3].ids == list.begin() && lists[3].count == 2 && lists[3].first == 9);

    kvlink::Span<const kvlink::Blocks> view = lists;
    CHECK(view.data() == lists && view.size() == 4 && !view.empty());
    view = lists[2];
    CHECK(view.data() == &lists[2] && view.size() == 1);
    kvlink::Span<std::uint32_t> writable = vector;
    writable[0] = 10;
    std::uint32_t sum = 0;
    for (const std::uint32_t id : kvlink::Span<const std::uint32_t>(writable))
        sum += id;
    CHECK(sum == 15);
#if __cplusplus >= 202002L
    const std::span<const std::uint32_t> standard(vector);
    CHECK(kvlink::Blocks(standard).ids == vector.data());
    CHECK(std::span<std::uint32_t>(writable).size() == 3);
#endif
}

static void ids_are_values()
{
    const kvlink::TransferId none, one(1), two(2);
    CHECK(!none && one && one.value() == 1 && one != two && one == kvlink::TransferId(1) && one < two);
    const std::unordered_set<kvlink::TransferId> set{one, two, one};
    CHECK(set.size() == 2);
}

static void handles_that_were_moved_from_say_so()
{
    kvlink::Layout layout = OK(kvlink::Layout::create(description()));
    kvlink::Layout moved = std::move(layout);
    CHECK(!layout && moved);
    FAILS(layout.explain(), Status::null_pointer, "layout is NULL");
    FAILS(layout.regions(), Status::null_pointer, "layout is NULL");
    OK(layout.close()); // nothing to end

    kvlink::Plan plan = *OK(kvlink::Plan::create(moved, moved, 0, 0)), other = std::move(plan);
    FAILS(plan.explain(), Status::null_pointer, "plan is NULL");
    OK(other.explain());

    kvlink::AgentConfig config;
    config.instance = "moved";
    kvlink::Agent agent = OK(kvlink::Agent::create(config, moved)), taken;
    taken = std::move(agent);
    FAILS(agent.address(), Status::null_pointer, "agent is NULL");
    FAILS(agent.poll(0), Status::null_pointer, "agent is NULL");
    FAILS(agent.event_fd(), Status::null_pointer, "agent is NULL");
    FAILS(kvlink::Agent::create(config, layout), Status::null_pointer, "layout is NULL");
    const std::string address = OK(taken.address());
    kvlink::Agent& itself = taken;
    taken = std::move(itself);
    CHECK(OK(taken.address()) == address);

    kvlink::SharedMemory memory = OK(kvlink::SharedMemory::allocate(4096)), here = std::move(memory);
    CHECK(memory.data() == nullptr && memory.size() == 0 && here.data() != nullptr && here.size() == 4096);
    memory = std::move(here);
    CHECK(here.data() == nullptr && memory.size() == 4096);
    OK(memory.close());
    CHECK(memory.data() == nullptr && memory.size() == 0);
    OK(memory.close());
    FAILS(kvlink::SharedMemory::allocate(0), Status::invalid_argument, "0 bytes");
}

static void handles_that_were_closed_are_stale()
{
    const kvlink::Layout layout = OK(kvlink::Layout::create(description()));
    OK(layout.close());
    FAILS(layout.explain(), Status::bad_handle, "stale");
    FAILS(layout.close(), Status::bad_handle, "stale");

    // Assigning ends what was there: nobody reaches the agent any more.
    kvlink::AgentConfig config;
    config.instance = "closed";
    const kvlink::Layout good = OK(kvlink::Layout::create(description()));
    kvlink::Agent agent = OK(kvlink::Agent::create(config, good));
    const kvlink::Agent same(agent.c_handle());
    agent = kvlink::Agent();
    FAILS(same.address(), Status::bad_handle, "stale");

    // A handle from C is taken over, or given away.
    kvlink::Agent owner = OK(kvlink::Agent::create(config, good));
    kvlink::Agent next(owner.release());
    CHECK(!owner);
    OK(next.address());
}

static void a_poll_that_waits_is_woken_by_closing()
{
    kvlink::AgentConfig config;
    config.instance = "woken";
    kvlink::Agent agent = OK(kvlink::Agent::create(config, OK(kvlink::Layout::create(description()))));
    std::thread waiting([&] { FAILS(agent.poll(kvlink::forever), Status::bad_handle, "agent"); });
    OK(agent.close());
    waiting.join();
}

int main()
{
    RUN(a_status_tells_its_class);
    RUN(errors_have_the_whole_message_of_their_own_thread);
    RUN(a_result_has_a_value_or_an_error);
    RUN(values_throw_where_exceptions_are_wanted);
    RUN(views_are_made_of_whatever_lies_in_a_row);
    RUN(ids_are_values);
    RUN(handles_that_were_moved_from_say_so);
    RUN(handles_that_were_closed_are_stale);
    RUN(a_poll_that_waits_is_woken_by_closing);
}
