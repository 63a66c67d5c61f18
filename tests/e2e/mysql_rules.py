"""What PyMySQL sees through Turnout, whatever server is behind it; a test class for each server takes these rules over.

Not collected by itself: its name does not begin with `test_`.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pymysql
import pymysql.cursors
import pytest
from pymysql.constants import CLIENT, COMMAND, SERVER_STATUS

from tests.e2e.doors import HOST, Door


def connect(door: Door, **options: Any) -> Any:
    """A PyMySQL connection in autocommit; `options` go before."""
    words: dict[str, Any] = {
        "host": HOST,
        "port": door.port,
        "user": door.user,
        "password": door.password,
        "database": door.database,
        "connect_timeout": 20,
        "read_timeout": 60,
        "autocommit": True,
    }
    return pymysql.connect(**{**words, **options})


def ask(connection: Any, sql: str, *args: object) -> Any:
    """All rows."""
    with connection.cursor() as cursor:
        cursor.execute(sql, args or None)
        return cursor.fetchall()


@contextmanager
def asleep(connection: Any, observer: Any) -> Iterator[list[object]]:
    """`connection` runs a long statement; what came of it is in the list afterwards."""
    came: list[object] = []

    def work() -> None:
        try:
            came.append(ask(connection, "select sleep(50), 'marked'"))
        except pymysql.err.MySQLError as error:
            came.append(error.args[0])

    thread = threading.Thread(target=work)
    thread.start()
    seen = "select 1 from information_schema.processlist where info like 'select sleep(50), \\'marked\\'%'"
    while not ask(observer, seen):
        pass
    try:
        yield came
    finally:
        thread.join(20)
        assert not thread.is_alive()


def row_count(connection: Any) -> int:
    """What it says, or the number of the error."""
    try:
        return int(ask(connection, "select row_count()")[0][0])
    except pymysql.err.MySQLError as error:
        return int(error.args[0])


def refusal(door: Door, **options: Any) -> tuple[int, str]:
    """Error number and text of a login that is refused."""
    with pytest.raises(pymysql.err.MySQLError) as refused:
        connect(door, **options).close()
    code, text = refused.value.args
    return int(code), str(text)


class MySqlRules:
    """Each test is given `door`, the way through Turnout."""

    def test_values_come_back_as_they_were_sent(self, door: Door) -> None:
        with closing(connect(door)) as connection:
            row = ask(connection, "select %s, %s, %s, %s, %s", 1, 2.5, "tœxt 🚃", None, b"\x00\xff")[0]
            assert row[:4] == (1, 2.5, "tœxt 🚃", None)

    def test_an_error_leaves_the_session_usable(self, door: Door) -> None:
        with closing(connect(door)) as connection:
            for _ in range(5):
                with pytest.raises(pymysql.err.ProgrammingError) as error:
                    ask(connection, "select * from no_such_table")
                assert error.value.args[0] == 1146
                assert ask(connection, "select 1") == ((1,),)

    def test_a_transaction_is_seen_whole_or_not_at_all(self, door: Door) -> None:
        with closing(connect(door)) as writer, closing(connect(door)) as reader:
            ask(writer, "drop table if exists whole")
            ask(writer, "create table whole (i int primary key)")
            writer.begin()
            ask(writer, "insert into whole values (1)")
            assert ask(reader, "select count(*) from whole") == ((0,),)
            ask(writer, "insert into whole values (2)")
            writer.rollback()
            assert ask(reader, "select count(*) from whole") == ((0,),)
            writer.begin()
            ask(writer, "insert into whole values (1)")
            writer.commit()
            assert ask(reader, "select count(*) from whole") == ((1,),)
            ask(writer, "drop table whole")

    def test_without_autocommit_each_statement_opens_a_transaction(self, door: Door) -> None:
        with closing(connect(door, autocommit=False)) as writer, closing(connect(door)) as reader:
            ask(reader, "drop table if exists opened")
            ask(reader, "create table opened (i int primary key)")
            ask(writer, "insert into opened values (1)")
            assert ask(writer, "select count(*) from opened") == ((1,),)
            assert ask(reader, "select count(*) from opened") == ((0,),)
            writer.rollback()
            assert ask(writer, "select count(*) from opened") == ((0,),)
            writer.commit()
            ask(reader, "drop table opened")

    def test_several_results_of_one_command_all_arrive(self, door: Door) -> None:
        with closing(connect(door, client_flag=CLIENT.MULTI_STATEMENTS)) as connection:
            with connection.cursor() as cursor:
                cursor.execute("select 1; select 2, 3; do 0; select 4")
                seen = [list(cursor.fetchall())]
                while cursor.nextset():
                    seen.append(list(cursor.fetchall()))
            assert seen == [[(1,)], [(2, 3)], [], [(4,)]]
            assert ask(connection, "select 5") == ((5,),)

    def test_without_the_flag_several_statements_are_refused(self, door: Door) -> None:
        with closing(connect(door)) as connection:
            with pytest.raises(pymysql.err.ProgrammingError) as error:
                ask(connection, "select 1; select 2")
            assert error.value.args[0] == 1064

    def test_an_error_in_the_middle_of_several_results_ends_them(self, door: Door) -> None:
        with closing(connect(door, client_flag=CLIENT.MULTI_STATEMENTS)) as connection:
            with connection.cursor() as cursor:
                cursor.execute("select 1; select nonsense; select 3")
                with pytest.raises(pymysql.err.OperationalError):
                    cursor.nextset()
            assert ask(connection, "select 5") == ((5,),)

    def test_a_large_result_is_read_row_by_row(self, door: Door) -> None:
        with closing(connect(door, cursorclass=pymysql.cursors.SSCursor)) as connection:
            with connection.cursor() as cursor:
                cursor.execute(
                    "with recursive n (i) as (select 1 union all select i + 1 from n where i < 900) "
                    "select i, repeat('x', 1000) from n"
                )
                assert sum(1 for _ in cursor.fetchall_unbuffered()) == 900
            assert ask(connection, "select 1")[0] == (1,)

    def test_packets_over_16_mb_pass_in_both_directions(self, door: Door) -> None:
        with closing(connect(door)) as connection:
            limit = ask(connection, "select @@max_allowed_packet")[0][0]
            for size in (0xFF_FF_FF - 40, 0xFF_FF_FF, 17_000_000, 2 * 0xFF_FF_FF + 5):
                if size + 100 > limit:
                    break
                assert ask(connection, "select length(%s)", "x" * size) == ((size,),)
                # Room around the value so that the packet has exactly this size, too.
                assert len(ask(connection, f"select repeat('y', {size})")[0][0]) == size
                assert ask(connection, "select 1") == ((1,),)

    def test_user_variables_and_settings_are_the_session_s_own(self, door: Door) -> None:
        with closing(connect(door)) as first, closing(connect(door)) as second:
            ask(first, "set @mine = 7")
            ask(first, "set session sort_buffer_size = 300000")
            before = ask(second, "select @@sort_buffer_size")
            for _ in range(5):
                assert ask(second, "select @mine, @@sort_buffer_size") == ((None, before[0][0]),)
                assert ask(first, "select @mine, @@sort_buffer_size") == ((7, 300000),)
        with closing(connect(door)) as third:
            assert ask(third, "select @mine, @@sort_buffer_size") == ((None, before[0][0]),)

    def test_a_temporary_table_stays_with_its_session(self, door: Door) -> None:
        with closing(connect(door)) as first, closing(connect(door)) as second:
            ask(first, "create temporary table passing (i int)")
            ask(first, "insert into passing values (1), (2)")
            for _ in range(5):
                ask(second, "select 1")
                assert ask(first, "select sum(i) from passing")[0][0] == 3
            with pytest.raises(pymysql.err.ProgrammingError):
                ask(second, "select * from passing")

    def test_the_last_insert_id_is_the_session_s_own(self, door: Door) -> None:
        """field-notes: LAST_INSERT_ID, FOUND_ROWS(), ROW_COUNT, SHOW WARNINGS"""
        with closing(connect(door)) as first, closing(connect(door)) as second, closing(connect(door)) as third:
            ask(first, "drop table if exists ids")
            ask(first, "create table ids (i int auto_increment primary key)")
            ask(first, "insert into ids values (null)")
            ask(second, "insert into ids values (null), (null)")
            for _ in range(3):
                ask(first, "select 1")
                assert ask(first, "select last_insert_id(), @@identity") == ((1, 1),)
                assert ask(second, "select last_insert_id()") == ((2,),)
                assert ask(third, "select last_insert_id()") == ((0,),)
            ask(first, "insert into ids values (last_insert_id() + 40)")
            assert ask(third, "select max(i) from ids") == ((41,),)
            ask(first, "drop table ids")

    def test_found_rows_are_those_of_the_last_statement(self, door: Door) -> None:
        """field-notes: LAST_INSERT_ID, FOUND_ROWS(), ROW_COUNT, SHOW WARNINGS"""
        three = "(select 1 union select 2 union select 3) as three"
        with closing(connect(door)) as first, closing(connect(door)) as second:
            for _ in range(3):
                assert len(ask(first, f"select sql_calc_found_rows * from {three} limit 1")) == 1
                ask(second, "select 1")
                assert ask(first, "select found_rows()") == ((3,),)

    def test_row_counts_are_the_session_s_own_or_nobody_s(self, door: Door) -> None:
        """field-notes: LAST_INSERT_ID, FOUND_ROWS(), ROW_COUNT, SHOW WARNINGS"""
        with closing(connect(door)) as first, closing(connect(door)) as second:
            ask(first, "drop table if exists counted")
            ask(first, "create table counted (i int)")
            ask(first, "insert into counted values (1), (2)")
            # A session that is tied to its backend has them there; another one is told that they are gone.
            assert row_count(first) in ((2, 1105) if door.name == "transaction" else (2,))
            for _ in range(3):
                ask(first, "insert into counted values (1), (2)")
                ask(second, "insert into counted values (3)")
                assert ask(first, "select row_count()") == ((2,),)
            ask(first, "drop table counted")

    def test_user_locks_stay_with_their_session(self, door: Door) -> None:
        with closing(connect(door)) as first, closing(connect(door)) as second:
            assert ask(first, "select get_lock('mine', 1)") == ((1,),)
            for _ in range(5):
                assert ask(second, "select get_lock('mine', 0)") == ((0,),)
                assert ask(first, "select is_used_lock('mine') = connection_id()") == ((1,),)
            assert ask(first, "select release_lock('mine')") == ((1,),)
            assert ask(second, "select get_lock('mine', 0), release_all_locks()") == ((1, 1),)

    def test_the_database_can_be_changed(self, door: Door) -> None:
        with closing(connect(door)) as connection:
            connection.select_db("information_schema")
            assert ask(connection, "select database()") == (("information_schema",),)
            ask(connection, "use app")
            assert ask(connection, "select database()") == (("app",),)
            with pytest.raises(pymysql.err.OperationalError) as error:
                connection.select_db("nowhere")
            assert error.value.args[0] in (1044, 1049)
            assert ask(connection, "select database()") == (("app",),)

    def test_the_character_set_is_the_one_asked_for(self, door: Door) -> None:
        for charset in ("utf8mb4", "latin1"):
            with closing(connect(door, charset=charset)) as connection:
                row = ask(connection, "select @@character_set_client, @@character_set_results, 'é'")[0]
                assert row == (charset, charset, "é")

    def test_ping_and_statistics_are_answered(self, door: Door) -> None:
        with closing(connect(door)) as connection:
            connection.ping(reconnect=False)
            connection._execute_command(COMMAND.COM_STATISTICS, b"")
            assert b"Uptime" in connection._read_packet().get_all_data()
            assert ask(connection, "select 1") == ((1,),)

    def test_a_reset_forgets_what_the_session_had(self, door: Door) -> None:
        with closing(connect(door)) as connection:
            ask(connection, "set @mine = 7")
            connection._execute_command(0x1F, b"")  # COM_RESET_CONNECTION
            connection._read_ok_packet()
            assert ask(connection, "select @mine") == ((None,),)

    def test_prepared_statements_are_the_session_s_own(self, door: Door) -> None:
        with closing(connect(door)) as first, closing(connect(door)) as second:
            ids = [Prepared(first, f"select ? + {number}") for number in range(20)]
            others = [Prepared(second, f"select ? - {number}") for number in range(20)]
            for number, (mine, theirs) in enumerate(zip(ids, others, strict=True)):
                assert mine.run(5) == 5 + number
                assert theirs.run(5) == 5 - number
            for statement in ids[::2]:
                statement.close()
            assert ids[1].run(1) == 2
            assert ids[1].run_again(2) == 3
            with pytest.raises(pymysql.err.MySQLError) as error:
                ids[0].run(1)
            assert error.value.args[0] == 1243
            assert ask(first, "select 1") == ((1,),)

    def test_warnings_are_those_of_the_last_statement(self, door: Door) -> None:
        with closing(connect(door)) as connection:
            for _ in range(5):
                ask(connection, "select cast('12x' as signed)")
                assert connection.show_warnings()
                assert ask(connection, "select 1") == ((1,),)

    def test_the_transaction_flag_reaches_the_client(self, door: Door) -> None:
        with closing(connect(door)) as connection:
            assert not connection.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS
            connection.begin()
            assert connection.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS
            connection.commit()
            assert not connection.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS

    def test_many_clients_at_once_each_get_their_own_answers(self, door: Door) -> None:
        failures: list[BaseException] = []

        def one(number: int) -> None:
            try:
                with closing(connect(door)) as connection:
                    for turn in range(20):
                        assert ask(connection, "select %s, %s", number, turn) == ((number, turn),)
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=one, args=(number,)) for number in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures

    # --- refused --------------------------------------------------------------------------------------------------

    def test_a_wrong_password_and_an_unknown_user_are_1045(self, door: Door) -> None:
        assert refusal(door, password="wrong")[0] == 1045
        assert refusal(door, password="")[0] == 1045
        assert refusal(door, user="nobody")[0] == 1045

    def test_an_unknown_database_is_1049(self, door: Door) -> None:
        code, text = refusal(door, database="elsewhere")
        assert code == 1049
        assert "elsewhere" in text

    def test_a_database_the_engine_refuses_is_told_with_the_engine_s_code(self, door: Door) -> None:
        assert refusal(door, database="nowhere")[0] in (1044, 1049)


class Prepared:
    """A prepared statement of one integer parameter; PyMySQL itself has none."""

    def __init__(self, connection: Any, sql: str) -> None:
        self._connection = connection
        connection._execute_command(COMMAND.COM_STMT_PREPARE, sql)
        answer = connection._read_packet().get_all_data()
        _, self.id, columns, parameters = struct.unpack_from("<BIHH", answer)
        assert (columns, parameters) == (1, 1)
        # Definitions of the parameter and of the column, each list with its EOF.
        for _ in range(4):
            connection._read_packet()

    def run(self, value: int) -> int:
        """With the parameter's type."""
        return self._execute(b"\x01\x08\x00" + struct.pack("<q", value))

    def run_again(self, value: int) -> int:
        """Without: the server remembers it from the last time."""
        return self._execute(b"\x00" + struct.pack("<q", value))

    def _execute(self, parameters: bytes) -> int:
        body = struct.pack("<IBI", self.id, 0, 1) + b"\x00" + parameters
        self._connection._execute_command(COMMAND.COM_STMT_EXECUTE, body)
        for _ in range(3):  # column count, one definition, EOF
            self._connection._read_packet()
        row = self._connection._read_packet().get_all_data()
        self._connection._read_packet()
        # header, null bitmap, then one integer of 8 bytes
        return int.from_bytes(row[2:10], "little", signed=True)

    def close(self) -> None:
        self._connection._execute_command(COMMAND.COM_STMT_CLOSE, struct.pack("<I", self.id))
